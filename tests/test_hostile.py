"""The harness that the fuzzers use tells a hang, a death, memory and a mistake of ours from a refusal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from posttrain.errors import DataError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import hostile

MARK = "hostile-test-child"


def _read(case: str) -> None:
    if case == "refused":
        raise DataError("no", rule="data-no")
    if case == "other":
        raise DataError("no")
    if case == "traceback":
        raise KeyError(case)
    if case == "exits":
        raise SystemExit(0)
    if case == "hang":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", MARK])
        time.sleep(60)
    if case == "died":
        os._exit(0)
    if case == "memory":
        held = bytearray(os.urandom(1 << 20) * 400)
        time.sleep(60)
        del held


@pytest.mark.slow
def test_each_outcome_is_told_apart_and_the_cases_after_it_are_read() -> None:
    cases = ["read", "refused", "other", "traceback", "exits", "hang", "read", "died", "memory", "refused"]
    outcomes = hostile.run(cases, _read, seconds=1.0, memory=200 << 20)
    wanted = ["read", "data-no", "other", "traceback", "traceback", "hang", "read", "died", "memory", "data-no"]
    assert [outcome.kind for outcome in outcomes] == wanted
    assert [outcome.case for outcome in outcomes] == list(range(len(cases)))
    assert not [p for p in psutil.process_iter(["cmdline"]) if MARK in (p.info["cmdline"] or [])]


def test_the_table_says_whether_all_went_well(capsys: pytest.CaptureFixture[str]) -> None:
    read, wrong = hostile.Outcome(0, "read", "", 0.1, 0), hostile.Outcome(1, "other", "no", 0.2, 1 << 20)
    assert hostile.table("a", [read])
    assert not hostile.table("a", [read, wrong])
    assert "2 inputs, slowest 0.2 s, most memory 1 MiB" in capsys.readouterr().out
