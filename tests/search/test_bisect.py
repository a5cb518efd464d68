"""The first wrong step by binary search."""

from __future__ import annotations

import math

import pytest

from posttrain.search.bisect import Bisect


@pytest.mark.parametrize("steps", range(1, 12))
def test_it_is_found_with_as_few_looks_as_may_be(steps: int) -> None:
    for wrong in range(steps):
        search, looks = Bisect(steps), 0
        while (probe := search.probe) is not None:
            search.take(probe <= wrong)  # a beginning of so many steps holds no wrong one
            looks += 1
        assert search.first_wrong == wrong
        assert looks <= math.ceil(math.log2(steps)) if steps > 1 else looks == 0
