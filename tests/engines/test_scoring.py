"""A reward model's scores are those of transformers' own forward on each text alone."""

from __future__ import annotations

import random

import pytest
import torch
from support.tiny_models import PAD, reward_model

from posttrain.engines.reward_scorer import Scorer, load_scorer
from posttrain.errors import ModelError

_draw = random.Random(0)


def _ids(length: int) -> list[int]:
    return [_draw.randrange(5, 300) for _ in range(length)]


PROMPTS = [_ids(length) for length in (9, 30, 1, 17, 9, 12, 22)]
COMPLETIONS = [[_ids(_draw.randint(1, 40)) for _ in range(k)] for k in (8, 3, 1, 0, 5, 2, 8)]
COMPLETIONS[0][3] = list(COMPLETIONS[0][1])  # the same answer twice
COMPLETIONS[1][0] = []  # an empty one
COMPLETIONS[2][0] = [7, 8, PAD, PAD]  # padding at the end is not read
COMPLETIONS[4][2] = [PAD]
_first = COMPLETIONS[6][0]  # others begin as it does, go on after it or end before it
COMPLETIONS[6][1:4] = [_first[:1] + _ids(9), _first + _ids(30), _first[: len(_first) // 2]]


@torch.inference_mode()
def _one_by_one(model) -> list[list[float]]:
    return [
        [model(torch.tensor([prompt + answer])).logits[0, 0].item() for answer in answers]
        for prompt, answers in zip(PROMPTS, COMPLETIONS, strict=True)
    ]


def _flat(scores: list[list[float]]) -> list[float]:
    return [value for some in scores for value in some]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt2"])
def test_scores_are_those_of_each_text_alone(kind: str) -> None:
    windowed = {"sliding_window": 80} if kind in ("mistral", "gemma2", "gemma3_text") else {}
    wanted = _one_by_one(reward_model(kind, **windowed))
    scorer = Scorer(reward_model(kind, **windowed))
    assert scorer.fallback is None
    made = scorer.score(PROMPTS, COMPLETIONS)
    assert [len(some) for some in made] == [len(some) for some in COMPLETIONS]
    assert _flat(made) == pytest.approx(_flat(wanted), abs=1e-5)
    assert made[0][1] == made[0][3]
    assert scorer.score(PROMPTS, COMPLETIONS) == made


def test_texts_longer_than_a_window_are_scored_one_by_one() -> None:
    wanted = _one_by_one(reward_model("mistral", sliding_window=40))
    made = Scorer(reward_model("mistral", sliding_window=40)).score(PROMPTS, COMPLETIONS)
    assert _flat(made) == pytest.approx(_flat(wanted), abs=1e-5)


def test_a_model_that_does_not_fit_says_so_and_is_scored_all_the_same() -> None:
    wanted = _one_by_one(reward_model("bloom", pad_token_id=PAD))
    scorer = Scorer(reward_model("bloom", pad_token_id=PAD))
    assert str(scorer.fallback).startswith("prompts are not shared: ")
    assert _flat(scorer.score(PROMPTS, COMPLETIONS)) == pytest.approx(_flat(wanted), abs=1e-5)


def test_without_a_padding_token_too() -> None:
    wanted = _one_by_one(reward_model("llama", pad_token_id=None))
    scorer = Scorer(reward_model("llama", pad_token_id=None))
    assert _flat(scorer.score(PROMPTS, COMPLETIONS)) == pytest.approx(_flat(wanted), abs=1e-5)


def test_bfloat16_is_near() -> None:
    wanted = _flat(_one_by_one(reward_model("llama")))
    made = _flat(Scorer(reward_model("llama"), "bfloat16").score(PROMPTS, COMPLETIONS))
    assert made == pytest.approx(wanted, abs=0.1 * max(map(abs, wanted)))


def test_a_folder_and_a_model_are_scored_alike(tmp_path) -> None:
    reward_model("llama").save_pretrained(tmp_path)
    wanted = Scorer(reward_model("llama")).score(PROMPTS, COMPLETIONS)
    assert load_scorer(tmp_path).score(PROMPTS, COMPLETIONS) == wanted
    with pytest.raises(ModelError, match="cannot load a reward model"):
        load_scorer(tmp_path / "missing")


def test_a_model_with_two_labels_is_refused() -> None:
    with pytest.raises(ModelError, match="num_labels=2"):
        Scorer(reward_model("llama", num_labels=2))


def test_nothing_to_score() -> None:
    scorer = Scorer(reward_model("llama"))
    assert scorer.score([], []) == []
    assert scorer.score([[5, 6]], [[]]) == [[]]
