"""What a training's float type and attention are chosen by."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import causal_lm

from posttrain.training import precision
from posttrain.training.precision import Heads, training_dtype

SHAPES = {(64, 64): 4}


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        # seconds of a step, by type and attention
        ({("float32", "sdpa"): 4, ("float32", "eager"): 8, ("bfloat16", "sdpa"): 9, ("bfloat16", "eager"): 1}, "eager"),
        ({("float32", "sdpa"): 4, ("float32", "eager"): 8, ("bfloat16", "sdpa"): 9, ("bfloat16", "eager"): 5}, "sdpa"),
        ({("float32", "sdpa"): 4, ("float32", "eager"): 1, ("bfloat16", "sdpa"): 9, ("bfloat16", "eager"): 5}, "eager"),
    ],
)
def test_the_attention_is_the_faster_one_of_the_faster_type(
    times: dict[tuple[str, str], float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(attend: object) -> str:
        return "eager" if attend is precision._eager else "sdpa"

    def of(dtype: torch.dtype) -> str:
        return str(dtype).removeprefix("torch.")

    monkeypatch.setattr(precision, "_attention_seconds", lambda heads, dtype, attend: times[of(dtype), named(attend)])
    monkeypatch.setattr(
        precision, "_step", lambda made, heads, dtype: min(times[of(dtype), way] for way in ("sdpa", "eager"))
    )
    dtype, attention = training_dtype(SHAPES, Heads(2, 4, 16), "cpu")
    assert attention.name == chosen
    assert times[dtype.name, attention.name] == min(times.values())


def test_a_model_is_measured_with_its_own_heads() -> None:
    config = causal_lm("llama").config
    heads = Heads.of(config)
    assert (heads.layers, heads.query) == (config.num_hidden_layers, config.num_attention_heads)
    dtype, attention = training_dtype(SHAPES, heads, "cpu")
    assert dtype.name in ("float32", "bfloat16") and attention.name in ("sdpa", "eager")


def test_a_model_without_attention_has_none_to_choose() -> None:
    heads = Heads.of(causal_lm("mamba").config)
    assert heads.layers == 0
    assert training_dtype(SHAPES, heads, "cpu")[1].name == "sdpa"
