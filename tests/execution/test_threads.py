"""Threads change the bits of a product, so what samples and scores has one, whatever the machine and its settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import threads

from posttrain.execution.launcher import Ended, Forked


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stage_and_its_processes_compute_on_one_thread(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "scratch").mkdir()
    launcher = Forked(threads.say)
    launcher.start(tmp_path, workers)
    while not isinstance(ended := launcher.wait(), Ended):
        pass
    assert ended.error is None
    assert (tmp_path / "threads.txt").read_text() == "1 1 1"
