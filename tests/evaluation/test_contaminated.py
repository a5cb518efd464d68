"""How much of a benchmark was seen in training, and what that may have added to its score."""

from __future__ import annotations

import random

import numpy as np
import pytest

from posttrain.evaluation.contamination import Questions, gain

WORDS = [f"w{at}" for at in range(400)]


def text(drawn: random.Random, count: int) -> list[str]:
    return drawn.choices(WORDS, k=count)


def by_hand(question: list[str], rows: list[list[str]], n: int) -> float:
    """The share of words in an n-gram that any row has, over sets of tuples."""
    size = min(n, len(question))
    seen = {tuple(row[at : at + size]) for row in rows for at in range(len(row) - size + 1)}
    inside = set[int]()
    for at in range(len(question) - size + 1):
        if size and tuple(question[at : at + size]) in seen:
            inside |= {*range(at, at + size)}
    return len(inside) / max(len(question), 1)


@pytest.mark.parametrize("n", [3, 8])
def test_shares_are_those_of_a_count_over_sets(n: int) -> None:
    drawn = random.Random(n)
    questions = [text(drawn, drawn.choice([0, 2, 5, 20, 60])) for _ in range(80)]
    rows = [text(drawn, 40) for _ in range(60)]
    for question in questions[::2]:  # planted: a part of a question in a row
        if question:
            first = drawn.randrange(len(question))
            row = drawn.choice(rows)
            row[5:5] = question[first : first + drawn.randint(1, 40)]
    made = Questions([" ".join(question) for question in questions], n)
    for at in range(0, len(rows), 7):  # in several batches
        made.look([", ".join(row[:3]).upper() + " " + " ".join(row[3:]) + "." for row in rows[at : at + 7]])
    wanted = [by_hand(question, rows, n) for question in questions]
    assert made.shares() == pytest.approx(wanted)
    assert any(0 < share < 1 for share in wanted) and wanted.count(0) > 20


def planted(seed: int, count: int = 400, added: float = 0.25) -> tuple[list[float], list[float], list[float]]:
    """Shares, scores, and the chance of each question to be right, which is higher from a share of 0.6 on."""
    drawn = np.random.default_rng(seed)
    share = np.where(drawn.random(count) < 0.3, drawn.uniform(0.3, 1, count), drawn.uniform(0, 0.2, count))
    chance = 0.4 + added * (share > 0.6)
    return share.tolist(), (drawn.random(count) < chance).astype(float).tolist(), chance.tolist()


def test_the_gain_lies_within_its_interval_in_as_many_cases_as_it_says() -> None:
    within, widths = 0, []
    for seed in range(100):
        share, score, chance = planted(seed)
        found = gain(share, score, seed)
        above = np.asarray(share) > found["threshold"]
        truth = np.asarray(chance)[above].mean() - np.asarray(chance)[~above].mean()
        low, high = found["gain"]["ci95"]
        within += low <= truth <= high
        widths.append(high - low)
    assert within >= 89
    assert np.mean(widths) < 0.5


def test_without_an_effect_none_is_shown_but_by_chance() -> None:
    shown = 0
    for seed in range(100):
        share, score, _ = planted(seed, added=0.0)
        low, high = gain(share, score, seed)["gain"]["ci95"]
        shown += low > 0 or high < 0
    assert shown <= 11


def test_the_threshold_is_where_the_gain_is() -> None:
    share, score, _ = planted(0, count=2000, added=0.5)
    found = gain(share, score)
    assert 0.5 <= found["threshold"] <= 0.75 and found["gain"]["ci95"][0] > 0.3
    assert found["clean"] == pytest.approx(0.4, abs=0.05) and 0.05 < found["contaminated"] < 0.25


def test_scores_on_another_scale_have_the_same_gain_on_it() -> None:
    share, score, _ = planted(0, added=0.3)
    shares, tens = gain(share, score), gain(share, [10 * one for one in score])
    assert tens["threshold"] == shares["threshold"]
    assert tens["gain"]["value"] == pytest.approx(10 * shares["gain"]["value"])
    assert tens["gain"]["ci95"] == pytest.approx([10 * one for one in shares["gain"]["ci95"]])
    assert tens["clean"] == pytest.approx(10 * shares["clean"])


def test_too_few_questions_on_a_side_give_no_gain() -> None:
    assert gain([0.0] * 50, [1.0] * 50) == {
        "threshold": None,
        "contaminated": 0.0,
        "gain": {"value": None, "ci95": None, "n": 50},
    }
