"""Attention in which the K samples of a prompt share its keys and values.

transformers models call it through `AttentionInterface`; they hold no cache of their own. No mask function is
registered beside it: without one, transformers builds no mask, and what may be seen is decided here, from the state
that the engine puts into `active` before each forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

HIDDEN = torch.finfo(torch.float32).min / 2


class Unsupported(Exception):
    """The model needs a feature of attention that is not implemented here; the message names it."""


def check_equal(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float, what: str) -> None:
    """Raises Unsupported where values are further from the plain model's than `tolerance` times the largest of
    those."""
    apart, size = (ours.float() - wanted).abs().max().item(), wanted.abs().max().item()
    if not apart <= tolerance * size:  # so also for NaN
        raise Unsupported(f"its {what} differ from the plain model's by {apart:.2g} of {size:.2g}")


@dataclass(frozen=True, slots=True)
class Options:
    """What a layer asks for: scaling, sliding window (None: all), soft cap of the scores (None: none)."""

    scaling: float
    window: int | None
    softcap: float | None


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options) -> torch.Tensor:
    """Causal attention of whole sequences. query: (B, heads, L, D), key and value: (B, kv_heads, L, D)."""
    length = query.shape[2]
    narrow = options.window is not None and length > options.window
    groups = query.shape[1] // key.shape[1]
    if options.softcap is None and not narrow:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=options.scaling, enable_gqa=groups > 1
        )
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    at = torch.arange(length, device=query.device)
    hidden = at[None, :] > at[:, None]
    if narrow and options.window is not None:
        hidden |= at[None, :] <= at[:, None] - options.window
    scores = _capped(torch.matmul(query, key.transpose(2, 3)) * options.scaling, options.softcap)
    return torch.matmul(softmax(scores.masked_fill(hidden, _hidden(scores))), value)


def scaled(query: torch.Tensor, key: torch.Tensor, options: Options) -> torch.Tensor:
    """(B, Q, D) x (B, L, D) -> (B, Q, L) scores, capped."""
    empty = query.new_empty(())
    return _capped(torch.baddbmm(empty, query, key.transpose(1, 2), beta=0, alpha=options.scaling), options.softcap)


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else (scores / softcap).tanh_().mul_(softcap)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _hidden(scores: torch.Tensor) -> float:
    return torch.finfo(scores.dtype).min / 2
