"""A few of the folders that benchmarks/fuzz_models.py makes: each is taken or refused by a rule."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import fuzz_models
import hostile


def outcomes(inputs: int, seed: int) -> Counter[str]:
    return Counter(outcome.kind for outcome in hostile.run(fuzz_models.cases(inputs, seed), fuzz_models.read))


def test_a_folder_changed_at_random_is_taken_or_refused_by_a_rule() -> None:
    found = outcomes(24, seed=5)
    assert not {*found} & {*hostile.WRONG}, found
    assert len(found) > 4


@pytest.mark.long
def test_so_are_hundreds() -> None:
    assert fuzz_models.run(300, seed=6)
