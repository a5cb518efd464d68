"""A child with bounds of time and memory: what it gives back, and how it ends."""

from __future__ import annotations

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
