"""A reward model of a type for which transformers has no class: the head is a linear score, and its folder is read by
whatever reads one of transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import EOS, PAD, causal_lm, reward_model, tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.engines.reward_head import RewardHead, load_reward_model
from posttrain.engines.reward_scorer import load_scorer
from posttrain.training.averaging import average

PROMPTS = [[5, 9, 30, 4], [7, 8, 9, 10, 11, 12]]
ANSWERS = [[[20, 21, EOS], [22, 23, 24, 25, EOS]], [[40, EOS], [41, 42, 43, EOS]]]


def policy(folder: Path, kind: str, **changes: Any) -> Path:
    causal_lm(kind, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def by_hand(policy: Any, weight: torch.Tensor) -> list[list[float]]:
    """The head's weight times the policy's own last hidden state at each text's last token, without padding."""
    scores = []
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        scores.append([])
        for answer in answers:
            with torch.no_grad():
                text = torch.tensor([prompt + answer])
                hidden = policy.base_model(input_ids=text).last_hidden_state[0, -1]
                scores[-1].append(float((weight[0] * hidden).sum()))
    return scores


@pytest.mark.parametrize("kind", ["olmoe", "granite", "cohere", "mamba"])
def test_its_scores_are_those_computed_by_hand_before_and_after_it_is_saved(tmp_path: Path, kind: str) -> None:
    folder = policy(tmp_path / "policy", kind)
    torch.manual_seed(1)
    made = load_reward_model(folder, num_labels=1).eval()
    assert RewardHead in type(made).__mro__
    wanted = by_hand(AutoModelForCausalLM.from_pretrained(folder).eval(), made.score.weight.detach())
    texts = [[*prompt, *answer] for prompt, some in zip(PROMPTS, ANSWERS, strict=True) for answer in some]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [PAD] * (longest - len(text)) for text in texts])
    with torch.no_grad():
        found = made(input_ids=ids, attention_mask=(ids != PAD).long()).logits[:, 0].tolist()
    assert found == pytest.approx([value for some in wanted for value in some], abs=1e-5)
    made.save_pretrained(tmp_path / "saved")
    for row, values in zip(load_scorer(tmp_path / "saved").score(PROMPTS, ANSWERS), wanted, strict=True):
        assert row == pytest.approx(values, abs=1e-5)
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert "num_labels" not in json.loads((tmp_path / "policy" / "config.json").read_text("utf-8"))


def test_one_goes_on_from_the_last_and_two_are_averaged(tmp_path: Path) -> None:
    folder = policy(tmp_path / "policy", "olmoe")
    for seed in (1, 2):
        torch.manual_seed(seed)
        load_reward_model(folder, num_labels=1).save_pretrained(tmp_path / str(seed))
        tokenizer().save_pretrained(tmp_path / str(seed))
    (tmp_path / "mean").mkdir()
    average([tmp_path / "1", tmp_path / "2"], tmp_path / "mean")
    one, other, mean = (load_reward_model(tmp_path / name, num_labels=1).score.weight for name in ("1", "2", "mean"))
    assert not torch.equal(one, other)
    torch.testing.assert_close(mean, (one + other) / 2)


def test_a_type_that_transformers_has_a_class_for_keeps_it(tmp_path: Path) -> None:
    reward_model("llama").save_pretrained(tmp_path)
    assert type(load_reward_model(tmp_path)) is type(AutoModelForSequenceClassification.from_pretrained(tmp_path))
    assert not isinstance(load_reward_model(tmp_path), RewardHead)


def test_several_rows_without_a_padding_token_are_no_guess(tmp_path: Path) -> None:
    made = load_reward_model(policy(tmp_path, "granite", pad_token_id=None), num_labels=1)
    assert made(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 1)
    with pytest.raises(ValueError, match="padding token"):
        made(input_ids=torch.tensor([[5, 6], [7, 8]]))
