"""Attention in which the K samples of a prompt share its keys and values.

transformers models call it through `AttentionInterface`; they hold no cache of their own. No mask function is
registered beside it: without one, transformers builds no mask, and what may be seen is decided here, from the state
that the engine puts into `active` before each forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

HIDDEN = torch.finfo(torch.float32).min / 2
_BLOCK = 64  # queries; 32 to 128 are about as fast at 60 to 500 tokens


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
    """Causal attention of whole sequences. query: (B, heads, L, D), key and value: (B, kv_heads, L, D).

    On a CPU by blocks of queries: each meets only the keys that some query of it sees, and a key that several heads
    share is multiplied with them at once. torch's own kernel took two to five times as long in bfloat16 (Zen 5), and
    0.9 to 1.7 times as long in float32. On a GPU that has it torch's; with a window or a cap of scores one block.
    """
    heads, length = query.shape[1:3]
    groups, window = heads // key.shape[1], options.window
    if query.device.type != "cpu" and options.softcap is None and (window is None or length <= window):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=options.scaling, enable_gqa=groups > 1
        )
    key, value = key.flatten(0, 1), value.flatten(0, 1)
    out = query.new_empty((*query.shape[:3], value.shape[-1]))
    size = _BLOCK if query.device.type == "cpu" else length
    for start in range(0, length, size):
        stop = min(start + size, length)
        first = 0 if window is None else max(0, start + 1 - window)
        block = query[:, :, start:stop].reshape(len(key), -1, query.shape[-1])  # a key's heads one after the other
        scores = scaled(block, key[:, first:stop], options)
        on_grid = scores.view(len(key), groups, stop - start, stop - first)
        own = torch.arange(stop - start, device=query.device)
        on_grid[..., start - first :].add_(torch.where(own > own[:, None], _hidden(scores), 0.0).to(scores.dtype))
        if window is not None and stop > window:
            at = torch.arange(first, stop, device=query.device)
            on_grid.masked_fill_(at <= own[:, None] + (start - window), _hidden(scores))
        out[:, :, start:stop] = torch.bmm(softmax(scores), value[:, first:stop]).view(
            *query.shape[:2], -1, out.shape[-1]
        )
    return out


def scaled(query: torch.Tensor, key: torch.Tensor, options: Options, unit: float = 1.0) -> torch.Tensor:
    """(B, Q, D) x (B, L, D) -> (B, Q, L) scores, capped; `unit` times as large as they are."""
    empty, cap = query.new_empty(()), options.softcap
    factor = options.scaling * unit if cap is None else options.scaling / cap
    scores = torch.baddbmm(empty, query, key.transpose(1, 2), beta=0, alpha=factor)
    return scores if cap is None else scores.tanh_().mul_(cap * unit)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _hidden(scores: torch.Tensor) -> float:
    return torch.finfo(scores.dtype).min / 2
