"""Ctrl-C and SIGTERM on a real run: it ends at once, leaves nothing running or partial, and says how to go on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import faults


def command(root: Path) -> list[str]:
    words = [sys.executable, "-m", "posttrain", "round", "--n", "1", "--run", str(root)]
    return words + [word for key, value in faults.REDUCED.items() for word in ("--set", f"{key}={value}")]


def begin(root: Path, until: str) -> subprocess.Popen[str]:
    """The command, as soon as it has said `until`."""
    started = subprocess.Popen(
        command(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stdout
    for line in started.stdout:
        if until in line:
            return started
    raise AssertionError(started.communicate()[1])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_run_that_is_stopped_ends_at_once_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals, whole_group: bool
) -> None:
    """The terminal sends Ctrl-C to all processes of the command; a cluster sends SIGTERM to the command alone."""
    root = tmp_path / "run"
    running = begin(root, "preferences")
    time.sleep(1.0)  # in the middle of sampling
    everyone = psutil.Process(running.pid).children(recursive=True)
    assert everyone
    before = time.monotonic()
    if whole_group:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    errors = running.communicate(timeout=30)[1]
    took = time.monotonic() - before
    assert running.returncode == 128 + number
    assert took < 4
    assert "what is whole stays. To go on from there: posttrain round --n 1" in errors
    assert f"--run {shlex.quote(str(root))}" in errors and "Traceback" not in errors
    assert psutil.wait_procs(everyone, timeout=5)[1] == []
    assert faults.Faulty(root).partial() == []
    assert list((root / "artifacts").glob("prompts-*"))
