"""Which float type and which attention train faster on this CPU, measured on a model's own shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from posttrain.engines.precision import Choice, clearly_faster, one_thread, products, sampling_dtype, seconds

_ROW = 128  # tokens
_MICRO_BATCH = 4


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
    with one_thread():
        ways: dict[str, tuple[Choice, Callable[[], float]]] = {}
        for dtype in (torch.float32, torch.bfloat16):
            attention = _attention(heads, dtype)
            ways[str(dtype).removeprefix("torch.")] = attention, _step(shapes, heads, dtype, attention.name)
        (first, (_, slow)), (second, (_, fast)) = ways.items()
        chosen = clearly_faster((first, slow), (second, fast))
        return chosen, ways[chosen.name][0]


def _attention(heads: Heads, dtype: torch.dtype) -> Choice:
    if not heads.layers:
        return Choice("sdpa", ())
    return clearly_faster(
        ("sdpa", lambda: _attention_seconds(heads, dtype, _sdpa)),
        ("eager", lambda: _attention_seconds(heads, dtype, _eager)),
    )


def _step(shapes: Mapping[tuple[int, int], int], heads: Heads, dtype: torch.dtype, name: str) -> Callable[[], float]:
    """A function that gives the seconds of products and attention, forward and backward, of a row of tokens."""
    attend = _eager if name == "eager" else _sdpa

    def measured() -> float:
        spent = 0.0
        for weight, x, count in products(shapes, _ROW):
            weight.requires_grad_()
            x.requires_grad_()
            spent += count * seconds(lambda weight=weight, x=x: _product(x, weight, dtype))
        return spent + (heads.layers * _attention_seconds(heads, dtype, attend) if heads.layers else 0.0)

    return measured


def _product(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        functional.linear(x, weight).sum().backward()


def _attention_seconds(heads: Heads, dtype: torch.dtype, attend: Callable[..., torch.Tensor]) -> float:
    """Of one layer and one row of a micro-batch."""
    size = (_MICRO_BATCH, heads.query, _ROW, heads.dim)
    query, key, value = (torch.randn(size, dtype=dtype, requires_grad=True) for _ in range(3))
    seen = torch.ones(_MICRO_BATCH, 1, _ROW, _ROW, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return seconds(lambda: attend(query, key, value, mask).sum().backward()) / _MICRO_BATCH


def _sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + mask
    return functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype) @ value
