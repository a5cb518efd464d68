"""Threads change the bits of a product, so what samples and scores has one, whatever the machine and its settings."""

from __future__ import annotations

import os
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


def test_a_thread_that_waits_gives_its_core_away_unless_somebody_says_how_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    Forked(threads.say)
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("KMP_BLOCKTIME", "3")
    Forked(threads.say)
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"]) == ("1000", "3")
