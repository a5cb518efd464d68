"""From logits to tokens: what the engines share, so that the same seeds give the same tokens in each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_BLOCK = 64


def uniforms(seeds: Sequence[int], steps: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float32, (len(seeds), steps): entry (i, t) depends on seeds[i] and t alone.

    A counter-based generator: SplitMix64 (Steele, Lea and Flood 2014) with its state set to hash(seed) + t * gamma.
    """
    gamma = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64) + gamma)
        counter = np.arange(1, steps + 1, dtype=np.uint64) * gamma
        bits = _mix(start[:, None] + counter[None, :])
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row by inverse CDF, and its log-probability at temperature 1 before `top_p`.

    logits: (rows, vocab), any float dtype; uniform: (rows,) in [0, 1). Returns (rows,) int64 and (rows,) float32.
    """
    logits = logits.float()
    if temperature == 0:
        token = logits.argmax(-1)
    else:
        highest = logits.amax(-1, keepdim=True)
        weight = ((logits - highest) / temperature).exp_()
        if top_p < 1:
            weight = _nucleus(weight, top_p)
        token = _inverse_cdf(weight, uniform)
    picked = logits.gather(-1, token[:, None])[:, 0]
    return token, picked - logits.logsumexp(-1)


def _nucleus(weight: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero for every token outside the smallest set whose share reaches `top_p`; the likeliest always stays."""
    ordered, order = torch.sort(weight, dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(weight).scatter_(-1, order, ordered)


def _inverse_cdf(weight: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulative weight exceeds uniform * total. weight: (rows, vocab), not normalised.

    In two levels, blocks of 64 and then within one: cumsum over a whole vocabulary is the slowest step otherwise.
    """
    rows, vocab = weight.shape
    short = -vocab % _BLOCK
    if short:
        weight = torch.nn.functional.pad(weight, (0, short))
    blocks = weight.view(rows, -1, _BLOCK)
    edges = blocks.sum(-1).cumsum(-1)
    total = edges[:, -1]
    target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))[:, None]
    block = torch.searchsorted(edges, target, right=True).clamp_(max=edges.shape[1] - 1)
    before = torch.where(block > 0, edges.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inner = blocks[torch.arange(rows, device=weight.device), block[:, 0]]
    within = torch.searchsorted(inner.cumsum(-1), target - before, right=True)
    # Rounding can carry the target past the last token that has any weight: take that token then.
    last = _BLOCK - 1 - (inner > 0).flip(-1).to(torch.int8).argmax(-1, keepdim=True)
    return (block * _BLOCK + torch.minimum(within, last))[:, 0]
