"""Which float type and which attention train faster on this CPU, measured on a model's own shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from posttrain.engines.precision import (
    Choice,
    Measured,
    clearly_faster,
    faster_type,
    one_thread,
    products,
    sampling_dtype,
    seconds,
)

_ROW = 128  # tokens


@dataclass(frozen=True)
class Heads:
    """Of one attention layer, and how many layers there are."""

    layers: int
    query: int
    dim: int

    @classmethod
    def of(cls, config: Any) -> Heads:
        """Of a model's config; no layers where it has no attention that says so."""
        text = config.get_text_config()
        heads = getattr(text, "num_attention_heads", None) or 0
        dim = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
        return cls(text.num_hidden_layers if heads else 0, heads, dim)


def training_dtype(shapes: Mapping[tuple[int, int], int], heads: Heads, device: str) -> tuple[Choice, Choice]:
    """`float32` or `bfloat16` (autocast) for a training's products, and `sdpa` or `eager` for its attention.

    shapes: as in `engines.precision`. On a GPU nothing is measured: bfloat16 where it has it, and sdpa.
    """
    if device.startswith("cuda"):
        return sampling_dtype(shapes, device), Choice("sdpa", ())
    made = list(products(shapes, _ROW))
    for weight, x, _ in made:
        weight.requires_grad_()
        x.requires_grad_()
    with one_thread():
        chosen = faster_type(
            made,
            lambda of, dtype: functools.partial(_step, of, heads, dtype),
            lambda of, dtype: functools.partial(_step, of, replace(heads, layers=0), dtype),
        )
        return chosen, _attention(heads, getattr(torch, chosen.name))


def _attention(heads: Heads, dtype: torch.dtype) -> Choice:
    if not heads.layers:
        return Choice("sdpa", ())
    return clearly_faster(
        ("sdpa", lambda: _attention_seconds(heads, dtype, _sdpa)),
        ("eager", lambda: _attention_seconds(heads, dtype, _eager)),
    )


def _step(made: Sequence[Measured], heads: Heads, dtype: torch.dtype) -> float:
    """Seconds of products and the faster attention, forward and backward, of a row of tokens."""
    spent = sum(count * seconds(lambda w=weight, x=x: _product(x, w, dtype)) for weight, x, count in made)
    if not heads.layers:
        return spent
    return spent + heads.layers * min(_attention_seconds(heads, dtype, attend) for attend in (_sdpa, _eager))


def _product(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        functional.linear(x, weight).sum().backward()


def _attention_seconds(heads: Heads, dtype: torch.dtype, attend: Callable[..., torch.Tensor]) -> float:
    """Of one layer and one row of tokens."""
    size = (1, heads.query, _ROW, heads.dim)
    query, key, value = (torch.randn(size, dtype=dtype, requires_grad=True) for _ in range(3))
    seen = torch.ones(1, 1, _ROW, _ROW, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return seconds(lambda: attend(query, key, value, mask).sum().backward())


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + mask
    return functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype) @ value
