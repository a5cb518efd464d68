"""The head for large vocabularies on a CPU gives what TRL's fused head gives."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import causal_lm
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS, ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from posttrain.training import head
from posttrain.training.head import HeadLogProbs, for_cpu

TOKENS, WIDTH, VOCABULARY = 13, 32, 700


def computed(function: type[torch.autograd.Function], dtype: torch.dtype) -> tuple[list[torch.Tensor], ...]:
    """The five fields, and the gradients of states and weights, computed under autocast to `dtype`."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(TOKENS, WIDTH, generator=draw, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=draw).div_(3).requires_grad_()
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=draw)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        targets[:3] = (states[:3] @ weight.T).argmax(-1)
        fields = function.apply(states, weight, None, targets, 1.25, 256, None, 0.5, OPTIONAL_OUTPUTS)
    loss = (fields[0] * torch.randn(TOKENS, generator=draw)).sum()
    return [each.detach() for each in fields], list(torch.autograd.grad(loss, [states, weight]))


@pytest.mark.parametrize("size", [1, 5 * VOCABULARY, 1 << 20])  # logits that are held, or cached, at once
def test_in_float32_fields_and_gradients_are_those_of_trl(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(head, "_HELD", size)
    monkeypatch.setattr(head, "_CACHED", size // 2)
    ours, theirs = (computed(function, torch.float32) for function in (HeadLogProbs, ChunkedLogProbFunction))
    for one, other in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert ours[0][4][:3].all() and not ours[0][4].all()


def test_in_bfloat16_log_probs_are_those_of_trl_and_gradients_as_near_to_the_exact_ones() -> None:
    ours, theirs = (computed(function, torch.bfloat16) for function in (HeadLogProbs, ChunkedLogProbFunction))
    exact = computed(ChunkedLogProbFunction, torch.float32)
    for one, other in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for one, other, wanted in zip(ours[1], theirs[1], exact[1], strict=True):
        assert (one - wanted).norm() < 1.5 * (other - wanted).norm() < 0.02 * wanted.norm()


def test_it_takes_the_place_of_trls_for_a_large_vocabulary_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, theirs = causal_lm("llama", vocab_size=640), trl_utils._ChunkedLogProbFunction
    with for_cpu(model):
        assert trl_utils._ChunkedLogProbFunction is theirs
    monkeypatch.setattr(head, "_LARGE", 640)
    with for_cpu(model):
        assert trl_utils._ChunkedLogProbFunction is HeadLogProbs
    assert trl_utils._ChunkedLogProbFunction is theirs
    model.config.final_logit_softcapping = 30.0  # which it does not know
    with for_cpu(model):
        assert trl_utils._ChunkedLogProbFunction is theirs
