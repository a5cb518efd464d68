"""Broken recipes and prompt files give an error of ours; `benchmarks/fuzz.py` tries a hundred thousand."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

FUZZ = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "fuzz.py"))
READERS = {name: (good, read) for name, good, read in FUZZ["READERS"]}


@pytest.mark.parametrize("name", READERS)
def test_no_input_gives_a_traceback(tmp_path: Path, name: str) -> None:
    good, read = READERS[name]
    if good:
        (tmp_path / name).write_bytes(good)
        read(tmp_path / name)  # what is broken is broken by the changes
    fuzz: Callable = FUZZ["fuzz"]
    outcomes = fuzz(name, good, read, 200, 1, tmp_path)
    assert outcomes["traceback"] == outcomes["other"] == 0 and outcomes.total() == 200
    assert 2 < outcomes["read"] < 198
