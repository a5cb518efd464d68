"""A child with bounds of time and memory: what it gives back, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from posttrain.storage import bounded


def test_the_result_and_the_error_come_back() -> None:
    assert bounded.run(lambda say: 3, seconds=5, memory=1 << 28) == 3
    with pytest.raises(ZeroDivisionError):
        bounded.run(lambda say: 1 // 0, seconds=5, memory=1 << 28)


@pytest.mark.parametrize(
    ("work", "how"),
    [
        (lambda: [0] * (1 << 28), "memory"),
        (lambda: sum(1 for _ in iter(int, 1)), "time"),
        (lambda: __import__("os").abort(), "SIGABRT"),
    ],
)
def test_what_has_no_end_is_ended(work: Callable[[], Any], how: str) -> None:
    def run(say: bounded.Say) -> None:
        say("something")
        work()

    with pytest.raises(bounded.OutOfBoundsError) as caught:
        bounded.run(run, seconds=1, memory=1 << 28)
    assert (caught.value.doing, caught.value.how) == ("something", how)


def test_where_the_system_does_not_tell_of_memory_time_alone_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_data", lambda: None)
    assert bounded.run(lambda say: len(bytearray(1 << 27)), seconds=5, memory=1 << 20) == 1 << 27
    with pytest.raises(bounded.OutOfBoundsError, match="time"):
        bounded.run(lambda say: (say("something"), sum(1 for _ in iter(int, 1))), seconds=1, memory=1 << 20)


def test_on_macos_a_child_that_a_signal_ended_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getpid()

    def unfit_for_forks(say: bounded.Say) -> int:
        say("something")
        if os.getpid() != me:
            os.abort()
        return 3

    with pytest.raises(bounded.OutOfBoundsError, match="SIGABRT"):
        bounded.run(unfit_for_forks, seconds=5, memory=1 << 28)
    monkeypatch.setattr("sys.platform", "darwin")
    assert bounded.run(unfit_for_forks, seconds=5, memory=1 << 28) == 3
