"""The engine on the shapes of pretrained models: random weights always, real ones where a variable names a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from support.tiny_models import tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from posttrain.engines import Request, SamplingParams, completion_seed
from posttrain.engines.decoder import LeanDecoder
from posttrain.engines.load import Loaded, load, prepare
from posttrain.engines.plain import PlainEngine
from posttrain.engines.protocol import Completion
from posttrain.engines.shared_prefix import SharedPrefixEngine, _cpu_memory

_ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def smollm2() -> Any:
    """SmolLM2-135M, of which 2 of 30 layers and 2,000 of 49,152 tokens."""
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        **_ENDS,
    )
    return LlamaForCausalLM(config)


def gemma3() -> Any:
    """Gemma 3 270M, of which 3 of 18 layers, 2,000 of 262,144 tokens, and a window that these texts are longer than."""
    config = Gemma3TextConfig(
        vocab_size=2000,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=16,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        tie_word_embeddings=True,
        **_ENDS,
    )
    return Gemma3ForCausalLM(config)


def made(build: Any, dtype: str) -> Loaded:
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():  # norms that are left out or folded wrongly must show
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return prepare(model, tokenizer(), dtype, "cpu")


def asked(vocab: int, lengths: Sequence[int], k: int) -> list[Request]:
    return [
        Request(
            tuple((17 * at + 29 * length) % (vocab - 5) + 5 for at in range(length)),
            tuple(completion_seed(0, str(length), index) for index in range(k)),
        )
        for length in lengths
    ]


def logprobs(answers: Sequence[Sequence[Completion]]) -> list[tuple[float, ...] | None]:
    return [one.logprobs for some in answers for one in some]


def same_as_plain(build: Any, lengths: Sequence[int], k: int, new: int) -> None:
    """Tokens and log-probabilities of the plain engine, from the lean decoder. A draw that rounding takes to the next
    token of the vocabulary ends the comparison of its answer: one may."""
    engine = SharedPrefixEngine(build())
    assert isinstance(engine.decoder, LeanDecoder)
    requests = asked(engine.loaded.model.config.vocab_size, lengths, k)
    ours = engine.generate(requests, SamplingParams(1.0, new))
    wanted = PlainEngine(build()).generate(requests, SamplingParams(1.0, new))
    apart = 0
    for one, other in zip(chain(*ours), chain(*wanted), strict=True):
        pairs = list(zip(one.tokens, other.tokens, strict=False))
        same = next((at for at, (a, b) in enumerate(pairs) if a != b), new)
        if same < new:
            apart += 1
            assert abs(one.tokens[same] - other.tokens[same]) == 1
        assert one.logprobs and other.logprobs
        assert one.logprobs[:same] == pytest.approx(other.logprobs[:same], abs=1e-3)
    assert apart <= 1


def near_in_bfloat16(exact: Loaded, half: Loaded) -> None:
    """First tokens greedily: within the rounding of 8 bits."""
    requests, greedy = asked(exact.model.config.vocab_size, (9, 25, 33), 1), SamplingParams(0.0, 1)
    ours, wanted = (logprobs(SharedPrefixEngine(one).generate(requests, greedy)) for one in (half, exact))
    for a, b in zip(ours, wanted, strict=True):
        assert a == pytest.approx(b, abs=0.2)


@pytest.mark.parametrize("build", [smollm2, gemma3])
def test_random_weights_of_their_shapes(build: Any) -> None:
    same_as_plain(lambda: made(build, "float32"), (9, 25, 1), 3, 20)
    near_in_bfloat16(made(build, "float32"), made(build, "bfloat16"))


@pytest.mark.parametrize("variable", ["POSTTRAIN_SMOLLM2", "POSTTRAIN_GEMMA3"])
def test_the_models_themselves(variable: str) -> None:
    folder = os.environ.get(variable)
    if folder is None:
        pytest.skip(f"{variable} names no folder")
    same_as_plain(lambda: load(folder, "float32", "cpu"), (40, 12), 2, 12)
    near_in_bfloat16(load(folder, "float32", "cpu"), load(folder, "bfloat16", "cpu"))


def test_memory_for_keys_is_of_the_machine_in_coarse_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert [_cpu_memory(gib << 30) for gib in (1, 16, 24, 31, 32, 1000)] == [
        1 << power for power in (27, 30, 30, 30, 31, 32)
    ]
