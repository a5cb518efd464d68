"""Contamination planted in a corpus, against a count of tokens by hand."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from posttrain import filters
from posttrain.filters import FilterContext

WORDS = [a + b for a in "bdfglmnprst" for b in ("a", "ela", "ino", "oru", "ump")]


def text(chance: random.Random, words: int) -> list[str]:
    return [chance.choice(WORDS) for _ in range(words)]


def share(prompt: list[str], evaluated: list[str], n: int) -> float:
    """The share of the evaluation prompt's words that stand in an n-gram of the prompt, counted word by word."""
    grams = {tuple(prompt[at : at + n]) for at in range(len(prompt) - n + 1)}
    covered = set()
    for at in range(len(evaluated) - n + 1):
        if tuple(evaluated[at : at + n]) in grams:
            covered |= set(range(at, at + n))
    return len(covered) / len(evaluated)


@pytest.mark.parametrize(("n", "threshold"), [(8, 0.5), (5, 0.2), (13, 0.5)])
def test_every_prompt_that_holds_more_than_the_threshold_is_found_and_no_other(n: int, threshold: float):
    chance = random.Random(n)
    evaluation = [text(chance, chance.randrange(15, 60)) for _ in range(200)]
    planted = []
    for source in evaluation:  # a part of it, with a slip or two, among other words
        start = chance.randrange(len(source) // 2)
        part = source[start : start + chance.randrange(n, len(source))]
        for _ in range(chance.randrange(3)):
            part[chance.randrange(len(part))] = "slip"
        planted.append(text(chance, chance.randrange(20)) + part + text(chance, chance.randrange(20)))
    prompts = planted + [text(chance, 40) for _ in range(200)]
    chance.shuffle(prompts)
    truth = {at for at, prompt in enumerate(prompts) if max(share(prompt, each, n) for each in evaluation) > threshold}
    assert 15 < len(truth) < 190
    table = pa.table({"prompt": [" ".join(words) for words in prompts], "completion": [str(at) for at in range(400)]})
    context = FilterContext([" ".join(words) for words in evaluation])
    run = filters.run(table.to_batches(), filters.parse([{"use": "overlap", "n": n, "max_share": threshold}]), context)
    dropped = {int(at) for part in run for at in part.dropped["completion"].to_pylist()}
    assert dropped == truth
