"""The collapse watch: figures against sums by hand, and what it says of a corpus that collapses."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain.config.collapse import Collapse
from posttrain.evaluation import diversity
from posttrain.job import Job
from posttrain.stages import diversity as stage

WORDS = [a + b for a in "bdfglmnprst" for b in ("a", "ela", "ino", "oru", "ump", "ish")]


def bleu(own: list[str], others: list[list[str]]) -> float:
    """BLEU-4 by its definition, one text against all others, n-gram by n-gram."""
    logs = 0.0
    for n in range(1, 5):
        grams = [tuple(own[at : at + n]) for at in range(len(own) - n + 1)]
        clipped = 0
        for gram in set(grams):
            most = max(sum(tuple(other[at : at + n]) == gram for at in range(len(other))) for other in others)
            clipped += min(grams.count(gram), most)
        more = int(n > 1)
        if clipped + more == 0:
            return 0.0
        logs += math.log((clipped + more) / (len(grams) + more)) / 4
    nearest = min((abs(len(other) - len(own)), len(other)) for other in others)[1]
    return math.exp(logs) * min(1.0, math.exp(1 - nearest / len(own)))


def test_self_bleu_is_the_mean_of_bleu_against_all_others():
    chance = random.Random(0)
    texts = [[chance.choice(WORDS[:9]) for _ in range(chance.randrange(2, 14))] for _ in range(25)]
    by_hand = [bleu(own, texts[:at] + texts[at + 1 :]) for at, own in enumerate(texts)]
    assert diversity.self_bleu(texts) == pytest.approx(sum(by_hand) / len(by_hand))
    assert 0.1 < sum(by_hand) / len(by_hand) < 0.9
    assert diversity.self_bleu([texts[0], texts[0]]) == pytest.approx(1)
    assert diversity.self_bleu([texts[0], []]) is None


def test_distinct_n_counts_different_n_grams():
    texts = [["a", "b", "a", "b"], ["a", "b"]]
    assert diversity.distinct(texts, 1) == pytest.approx(2 / 6)
    assert diversity.distinct(texts, 2) == pytest.approx(2 / 4)
    assert diversity.distinct([["a"]], 2) is None


def test_drift_is_none_between_equals_and_one_between_strangers():
    one, half = [["a", "b"]], [["a", "c"]]
    assert diversity.js_divergence(one, one) == pytest.approx(0)
    assert diversity.js_divergence(one, [["c"], ["d"]]) == pytest.approx(1)
    assert diversity.js_divergence(one, half) == pytest.approx(0.5)  # by hand: half of the mass is shared
    assert diversity.js_divergence(one, [[]]) is None


def kept(folder: Path, answers: list[str]) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "kept.parquet")
    return folder


def watched(tmp_path: Path, now: list[str], first: list[str] | None = None, **keys) -> dict:
    inputs = {"kept": kept(tmp_path / "now", now), **({"first": kept(tmp_path / "first", first)} if first else {})}
    config = {"collapse": Collapse(**keys).model_dump(mode="json")}
    return stage.run(Job(config, inputs, tmp_path, tmp_path, 0))


def texts(seed: int, count: int, words: list[str] = WORDS, length: int = 30) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choice(words) for _ in range(length)) for _ in range(count)]


def test_rounds_alike_give_no_warning_whatever_their_sizes(tmp_path: Path):
    told = watched(tmp_path, texts(1, 400), texts(2, 90))
    assert told["warnings"] == []
    assert told["figures"]["answers"] == told["first"]["answers"] == 90  # distinct-n depends on the number


def test_a_collapse_planted_in_a_round_is_told(tmp_path: Path):
    phrase = "so the answer is what we have found above and that is all"
    told = watched(tmp_path, [phrase] * 60 + texts(1, 40), texts(2, 100))
    said = " | ".join(told["warnings"])
    assert "59% of the kept answers are near-duplicates of others" in said
    for name in ("distinct 3", "compression ratio", "self bleu"):
        assert f"{name} of the kept answers" in said
    assert told["figures"]["near_duplicates"] == pytest.approx(0.59)


def test_drift_of_words_and_of_length_is_told(tmp_path: Path):
    told = watched(tmp_path, texts(1, 100, WORDS[30:], 60), texts(2, 100, WORDS[:36]))
    said = " | ".join(told["warnings"])
    assert "moved away from round 1's" in said and "length of the kept answers rose from 30 in round 1 to 60" in said


def test_the_first_round_is_only_measured(tmp_path: Path):
    told = watched(tmp_path, texts(1, 50))
    assert told["first"] is None and told["figures"]["drift"] is None and told["warnings"] == []
