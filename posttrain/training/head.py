"""Log-probs over a large vocabulary on a CPU, each product in the training's own type.

On a CPU, TRL's fused head computes the products of the gradient in float32, which is several times slower where bf16 is
fast, and passes many times over tiles of 4,096 × 32,768 logits. Here the logits of a token are in the cache while they
are read, and the hidden states' gradient is taken from the forward's own softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer import utils as trl_utils

_LARGE = 1 << 22  # weights of the smallest head that is computed so: TRL's is as fast for smaller ones
_HELD = 1 << 26  # logits that are held at once
_CACHED = 1 << 18  # logits that fit into the cache, in float32
_OTHERS = ("entropy", "log_sum_sq_probs", "mean_logits")


@contextmanager
def for_cpu(model: Any) -> Iterator[None]:
    """Within it TRL's fused head is computed by `HeadLogProbs`, if the model's is a large one on a CPU, without bias
    and soft cap."""
    head = model.get_output_embeddings()
    if not is_linear(model) or head.weight.device.type != "cpu" or head.weight.numel() < _LARGE:
        yield
        return
    theirs = trl_utils._ChunkedLogProbFunction
    trl_utils._ChunkedLogProbFunction = HeadLogProbs
    try:
        yield
    finally:
        trl_utils._ChunkedLogProbFunction = theirs


def is_linear(model: Any) -> bool:
    """Whether the logits are the hidden states times a matrix: no bias, no soft cap."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return cap is None and getattr(model.get_output_embeddings(), "bias", None) is None


class HeadLogProbs(torch.autograd.Function):
    """TRL's `ChunkedLogProbFunction`, with its arguments and results, without gradient through the entropy.

    hidden (n, H), weight (V, H), targets (n,); bias and softcap: None. Gives the log-probs and four further fields,
    each (n,) float32 (`is_top1` bool), or None where `outputs` does not name it. Products are in autocast's type, all
    else is in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcap: None,
        logit_scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        ctx.scale, count = logit_scale / temperature, len(hidden)
        states, table = hidden.to(dtype), weight.to(dtype)
        log_probs, log_z = torch.empty(count), torch.empty(count)
        fields = {
            name: torch.empty(count) for name in ("entropy", "log_sum_sq_probs", "mean_logits") if name in outputs
        }
        is_top1 = torch.empty(count, dtype=torch.bool)
        gradient = torch.empty(hidden.shape) if ctx.needs_input_grad[0] else None
        for held in _slices(count, _HELD // len(weight)):
            tile = states[held] @ table.t()
            for at, part in _parts(held, tile):
                logits = part.float().mul_(ctx.scale)
                highest, first = logits.max(-1)
                is_top1[at] = first == targets[at]
                if "mean_logits" in fields:
                    fields["mean_logits"][at] = logits.mean(-1)
                logits -= highest[:, None]
                probs = logits.exp()
                total = probs.sum(-1)
                log_probs[at] = logits.gather(1, targets[at, None])[:, 0] - total.log()
                log_z[at] = highest + total.log()
                probs /= total[:, None]
                if "entropy" in fields:
                    fields["entropy"][at] = total.log() - logits.mul_(probs).sum(-1)
                if gradient is not None:
                    part.copy_(probs)
                if "log_sum_sq_probs" in fields:
                    fields["log_sum_sq_probs"][at] = probs.square_().sum(-1).log()
            if gradient is not None:
                gradient[held] = ctx.scale * (table[targets[held]].float() - tile @ table)
        ctx.save_for_backward(states, table, targets, log_z, gradient)
        ctx.types = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(is_top1, *fields.values())
        given = (fields.get(name) for name in _OTHERS)
        return log_probs, *given, is_top1 if "is_top1" in outputs else None

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        states, table, targets, log_z, gradient = ctx.saved_tensors
        of_log_probs, (hidden_dtype, weight_dtype) = gradients[0], ctx.types
        assert of_log_probs is not None
        of_hidden = None if gradient is None else (gradient * of_log_probs[:, None]).to(hidden_dtype)
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros(table.shape)
            for held in _slices(len(states), _HELD // len(table)):
                tile = states[held] @ table.t()
                for at, part in _parts(held, tile):
                    scaled = ctx.scale * of_log_probs[at, None]
                    probs = part.float().mul_(ctx.scale).sub_(log_z[at, None]).exp_()
                    part.copy_(probs.mul_(-scaled).scatter_add_(1, targets[at, None], scaled))
                of_weight += tile.t() @ states[held]
            of_weight = of_weight.to(weight_dtype)
        return of_hidden, of_weight, *[None] * 7


def _slices(count: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _parts(held: slice, tile: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Parts of a tile (tokens, V) that fit into the cache, each with its place among all tokens."""
    for part in _slices(len(tile), _CACHED // tile.shape[1]):
        yield slice(held.start + part.start, held.start + part.stop), tile[part]
