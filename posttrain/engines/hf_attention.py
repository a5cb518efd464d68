"""The attention that transformers' models are given while they sample."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from posttrain.engines.attention import Options, Unsupported
from posttrain.engines.kv_cache import Prefix, Suffixes

if TYPE_CHECKING:
    from posttrain.engines.packed_attention import Packed

NAME = "posttrain_shared_prefix"


class _Active(threading.local):
    packed: Packed | None = None
    prefix: Prefix | None = None
    cohorts: Sequence[Suffixes] = ()


active = _Active()


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Called by transformers. query: (B, heads, T, D); key, value: (B, kv_heads, T, D). Returns (B, T, heads, D)."""
    odd = [name for name in ("s_aux", "position_bias", "head_mask", "cache") if kwargs.get(name) is not None]
    if odd or attention_mask is not None:
        raise Unsupported(f"its attention uses {odd[0] if odd else 'a mask of its own'}")
    options = Options(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    if active.packed is not None:
        rows = [part[0].transpose(0, 1) for part in (query, key, value)]
        out = active.packed.attend(rows[0], rows[1], rows[2], options)
        return out.view(1, len(out), query.shape[1], -1), None
    layer = module.layer_idx
    if active.prefix is not None:
        return active.prefix.prefill(layer, query, key, value, options).transpose(1, 2), None
    query, key, value = query[:, :, 0], key[:, :, 0], value[:, :, 0]
    if len(active.cohorts) == 1:
        return active.cohorts[0].decode(layer, query, key, value, options)[:, None], None
    parts, start = [], 0
    for cohort in active.cohorts:
        some = slice(start, start + cohort.rows)
        parts.append(cohort.decode(layer, query[some], key[some], value[some], options))
        start += cohort.rows
    return torch.cat(parts)[:, None], None


def register() -> None:
    """Makes `attend` known to transformers under NAME."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
