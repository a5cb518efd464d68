"""The mean of models: the number itself, types, what cannot be averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import causal_lm, reward_model, tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.errors import ModelError
from posttrain.training.averaging import average


def saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def shifted(by: float, dtype: torch.dtype = torch.float32) -> Any:
    model = causal_lm("llama")
    with torch.no_grad():
        for part in model.parameters():
            part.add_(by)
    return model.to(dtype)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def test_the_mean_of_three_models_is_the_mean_of_each_weight(tmp_path: Path) -> None:
    folders = [saved(shifted(by), tmp_path / str(by)) for by in (0.0, 0.5, 2.5)]
    (tmp_path / "mean").mkdir()
    average(folders, tmp_path / "mean")
    for name, weight in weights(tmp_path / "mean").items():
        torch.testing.assert_close(weight, weights(folders[0])[name] + 1.0, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_copies_of_one_model_is_that_model_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    one = saved(shifted(0.1, dtype), tmp_path / "one", max_shard_size="40KB")  # several files
    assert len(list(one.glob("*.safetensors"))) > 1
    (tmp_path / "mean").mkdir()
    average([one] * 3, tmp_path / "mean")
    for name, weight in weights(tmp_path / "mean").items():
        assert weight.dtype == dtype
        assert torch.equal(weight, weights(one)[name])


def test_reward_models_keep_their_head(tmp_path: Path) -> None:
    folder = saved(reward_model("llama"), tmp_path / "one")
    (tmp_path / "mean").mkdir()
    average([folder, folder], tmp_path / "mean")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mean")
    assert torch.equal(loaded.score.weight, reward_model("llama").score.weight)


def other_words(folder: Path) -> Path:
    """The same shapes, and two tokens that have changed places."""
    saved(causal_lm("llama"), folder)
    text = (folder / "tokenizer.json").read_text("utf-8")
    made = json.loads(text)
    vocabulary = made["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (folder / "tokenizer.json").write_text(json.dumps(made), "utf-8")
    return folder


def test_what_lies_below_the_first_model_is_not_the_means(tmp_path: Path) -> None:
    one = saved(causal_lm("llama"), tmp_path / "one")
    (one / "adapter").mkdir()
    (one / "artifact.json").write_text("{}")
    (tmp_path / "mean").mkdir()
    average([one, one], tmp_path / "mean")
    assert not {"adapter", "artifact.json"} & {path.name for path in (tmp_path / "mean").iterdir()}


def test_what_cannot_be_averaged_says_so(tmp_path: Path) -> None:
    one = saved(causal_lm("llama"), tmp_path / "one")
    wider = saved(causal_lm("llama", intermediate_size=96), tmp_path / "wider")
    deeper = saved(causal_lm("llama", num_hidden_layers=3), tmp_path / "deeper")
    broken = causal_lm("llama")
    with torch.no_grad():
        next(broken.parameters())[0, 0] = float("nan")
    (tmp_path / "mean").mkdir()
    with pytest.raises(ModelError, match="shapes are"):
        average([one, wider], tmp_path / "mean")
    with pytest.raises(ModelError, match="only one of them has"):
        average([one, deeper], tmp_path / "mean")
    with pytest.raises(ModelError, match="not finite"):
        average([one, saved(broken, tmp_path / "broken")], tmp_path / "mean")
    with pytest.raises(ModelError, match="different tokenizers"):
        average([one, other_words(tmp_path / "words")], tmp_path / "mean")
    with pytest.raises(ModelError, match="no model"):
        average([], tmp_path / "mean")
