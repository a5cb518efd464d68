"""Causal attention by blocks against the formula written out."""

from __future__ import annotations

import itertools

import pytest
import torch

from posttrain.engines.attention import Options, causal


def written_out(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options) -> torch.Tensor:
    """Token by token, in float64."""
    batch, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    out = torch.empty(batch, heads, length, value.shape[-1], dtype=torch.float64)
    for row, head, at in itertools.product(range(batch), range(heads), range(length)):
        first = 0 if options.window is None else max(0, at + 1 - options.window)
        seen = slice(first, at + 1)
        scores = key[row, head // groups, seen].double() @ query[row, head, at].double() * options.scaling
        if options.softcap is not None:
            scores = options.softcap * torch.tanh(scores / options.softcap)
        out[row, head, at] = torch.softmax(scores, 0) @ value[row, head // groups, seen].double()
    return out


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("window", [None, 1, 10, 64, 100])
@pytest.mark.parametrize(("heads", "kv_heads", "softcap"), [(2, 2, None), (3, 1, 5.0), (4, 2, None)])
def test_each_token_sees_itself_and_those_before_it_in_its_window(
    length: int, window: int | None, heads: int, kv_heads: int, softcap: float | None
) -> None:
    draw = torch.Generator().manual_seed(length)
    query, key, value = (
        torch.randn(2, count, length, dim, generator=draw) for count, dim in ((heads, 8), (kv_heads, 8), (kv_heads, 5))
    )
    options = Options(0.7, window, softcap)
    wanted = written_out(query, key, value, options)
    assert torch.allclose(causal(query, key, value, options).double(), wanted, atol=1e-5)
    half = causal(query.bfloat16(), key.bfloat16(), value.bfloat16(), options)
    assert torch.allclose(half.double(), wanted, atol=0.05)  # 8 bits of scores and weights
