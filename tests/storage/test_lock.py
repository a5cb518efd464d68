"""One process works on a run; stale locks are told from live ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from posttrain.errors import LockedError
from posttrain.storage import lock


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.4)


HOLDS = """
import sys, time
from pathlib import Path
from posttrain.storage import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_has_it_and_a_killed_one_has_it_no_more(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout and other.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"process {other.pid} on "), lock.held(path):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    start = time.monotonic()
    with lock.held(path):
        assert time.monotonic() - start < lock.STALE_SECONDS  # the kernel let go of it: nobody waits for a heartbeat


@pytest.mark.parametrize("alive", [True, False])
def test_an_owner_on_another_host_is_told_by_his_heartbeat(tmp_path: Path, alive: bool) -> None:
    """On file systems that do not lock between hosts, the kernel gives the lock to both."""
    path = tmp_path / "lock"
    path.write_text("process 7 on elsewhere")
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(lock.HEARTBEAT):
            os.utime(path)

    thread = threading.Thread(target=beat)
    if alive:
        thread.start()
    try:
        if alive:
            with pytest.raises(LockedError, match="process 7 on elsewhere"), lock.held(path):
                pass
        else:
            with lock.held(path):
                assert f"process {os.getpid()}" in path.read_text()
    finally:
        stop.set()
        if alive:
            thread.join()


def test_a_file_system_without_locks_has_the_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    with lock.held(tmp_path / "lock"), pytest.raises(LockedError, match=str(os.getpid())), lock.held(tmp_path / "lock"):
        pass
    with lock.held(tmp_path / "lock"):
        pass  # given back: there is no owner in it


def test_what_is_held_is_beating(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock.held(path):
        before = path.stat().st_mtime_ns
        time.sleep(4 * lock.HEARTBEAT)
        assert path.stat().st_mtime_ns > before


def test_a_stage_waits_for_what_a_killed_command_left_running(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []
    inside = threading.Event()

    def first() -> None:
        with lock.alone(path):
            inside.set()
            time.sleep(0.2)
            order.append("the one before ends")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with lock.alone(path):
        order.append("the next begins")
    thread.join()
    assert order == ["the one before ends", "the next begins"]
