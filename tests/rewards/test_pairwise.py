"""Judges of pairs: how they are told from rewards, how they are asked, and what a mistake in one looks like."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import RewardEntry
from posttrain.data.messages import Prompt
from posttrain.errors import RewardError
from posttrain.rewards import load as load_reward
from posttrain.rewards.functions import Reward
from posttrain.rewards.pairwise import Pairwise, load

PROMPTS = [[{"role": "user", "content": text}] for text in ("one?", "two?", "three?")]


def says(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def entry(folder: Path, body: str, head: str = "def judge(prompts, first, second, **columns)") -> RewardEntry:
    (folder / "mine.py").write_text(f"{head}:\n    {body}\n")
    return RewardEntry(use=str(folder / "mine.py"))


def judge(folder: Path, body: str) -> Pairwise:
    made = load(entry(folder, body))
    assert isinstance(made, Pairwise)
    return made


LONGER = "return [float(len(a[-1]['content']) > len(b[-1]['content'])) for a, b in zip(first, second)]"


def test_the_arguments_say_what_kind_of_judge_it_is(tmp_path: Path) -> None:
    assert judge(tmp_path, LONGER).name == "mine"
    assert isinstance(load(entry(tmp_path, "return [1]", "def f(prompts, completions, **columns)")), Reward)
    pointwise = "def f(prompts, completions, first, second)"  # columns that happen to have these names
    assert isinstance(load(entry(tmp_path, "return first", pointwise)), Reward)
    with pytest.raises(RewardError, match="does not take `prompts` and `completions` by name"):
        load_reward(entry(tmp_path, LONGER, "def judge(prompts, first, second)"))


def test_the_better_answer_wins_on_either_side(tmp_path: Path) -> None:
    said = judge(tmp_path, LONGER)
    assert said(PROMPTS, says("long", "a", "same"), says("b", "long", "same"), {}) == [1.0, 0.0, 0.5]
    assert said(PROMPTS, says("b", "long", "same"), says("long", "a", "same"), {}) == [0.0, 1.0, 0.5]


@pytest.mark.parametrize("side", ["1.0", "0.0", "0.8"])
def test_a_judge_that_looks_at_the_side_alone_gives_one_half(tmp_path: Path, side: str) -> None:
    """Asked once, it would give the first answer all wins, or none."""
    said = judge(tmp_path, f"return [{side}] * len(prompts)")
    assert said(PROMPTS, says("x", "y", "z"), says("a", "b", "c"), {}) == [0.5] * 3


def test_columns_and_no_score_reach_it(tmp_path: Path) -> None:
    text = "return [None if a is None else float(f[-1]['content'] == a) for a, f in zip(answer, first)]"
    made = load(entry(tmp_path, text, "def judge(prompts, first, second, answer)"))
    assert isinstance(made, Pairwise)
    columns: dict[str, list[Any]] = {"answer": ["4", None, "6"], "other": [1, 2, 3]}
    assert made(PROMPTS, says("4", "5", "5"), says("5", "5", "6"), columns) == [1.0, None, 0.0]
    with pytest.raises(RewardError, match="needs the column 'answer'"):
        made.check_columns(["question"])
    made.probe([Prompt(({"role": "user", "content": "?"},), {"answer": None})])


@pytest.mark.parametrize(
    ("body", "says_"),
    [
        ("return [2.0] * len(prompts)", r"returned 2.0, which is no probability \[reward-probability\]"),
        ("return [float('nan')] * len(prompts)", "which is no finite number"),
        ("return [0.5]", "returned 1 scores for 3 rows"),
        ("raise ValueError('no such luck')", "no such luck"),
    ],
)
def test_what_it_must_not_return(tmp_path: Path, body: str, says_: str) -> None:
    with pytest.raises(RewardError, match=says_) as caught:
        judge(tmp_path, body)(PROMPTS, says("x", "y", "z"), says("a", "b", "c"), {})
    assert caught.value.file == str(tmp_path / "mine.py")


def test_it_can_be_pickled_and_its_identity_is_its_content(tmp_path: Path) -> None:
    one = judge(tmp_path, LONGER)
    assert pickle.loads(pickle.dumps(one))(PROMPTS[:1], says("long"), says("b"), {}) == [1.0]
    assert one.identity == judge(tmp_path, LONGER).identity != judge(tmp_path, "return []").identity
