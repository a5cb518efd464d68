"""From logits to tokens: what the engines share, so that the same seeds give the same tokens in each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

_BLOCK = 64
_LOG2_E = math.log2(math.e)


def uniforms(seeds: Sequence[int | None], steps: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float32, (len(seeds), steps): entry (i, t) depends on seeds[i] and t alone. Those
    without a seed mean nothing.

    A counter-based generator: SplitMix64 (Steele, Lea and Flood 2014) with its state set to hash(seed) + t * gamma.
    """
    gamma = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        start = _mix(np.array([(seed or 0) & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64) + gamma)
        counter = np.arange(1, steps + 1, dtype=np.uint64) * gamma
        bits = _mix(start[:, None] + counter[None, :])
    return ((bits >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)


def unseeded(seeds: Sequence[int | None], device: torch.device) -> torch.Tensor | None:
    """Which completions have no seed, (len(seeds),) bool; None where all have one."""
    return torch.tensor([seed is None for seed in seeds], device=device) if None in seeds else None


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(
    logits: torch.Tensor,
    row: torch.Tensor,
    uniform: torch.Tensor,
    temperature: float,
    top_p: float,
    greedy: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a sample by inverse CDF, and its log-probability at temperature 1 before `top_p`.

    logits: (rows, vocab), any float dtype, overwritten; row: (samples,) the row of logits that each sample draws from;
    uniform: (samples,) in [0, 1); greedy: (samples,) which take the likeliest token instead, None where none does.
    Returns (samples,) int64 and (samples,) float32.
    """
    logits = logits.float()
    if temperature == 0:
        likeliest = logits.argmax(-1)
        return likeliest[row], (logits.gather(-1, likeliest[:, None])[:, 0] - logits.logsumexp(-1))[row]
    likeliest = None if greedy is None else logits.argmax(-1)
    # Powers of 2: torch's exp takes several times as long on some processors.
    above = logits.sub_(logits.amax(-1, keepdim=True)).mul_(_LOG2_E)
    plain = temperature == 1 and top_p == 1
    weight = above.exp2_() if plain else (above / temperature).exp2_()
    # Sums of blocks of 64: one cumulative sum over a whole vocabulary would be the slowest step of all.
    blocks = _blocks(weight if top_p == 1 else _nucleus(weight, top_p))
    edges = blocks.sum(-1).cumsum(-1)
    token = _inverse_cdf(blocks, edges, row, uniform)
    if greedy is not None and likeliest is not None:
        token = torch.where(greedy, likeliest[row], token)
    if plain:
        return token, (weight[row, token] / edges[row, -1]).log_()
    return token, (above[row, token] - above.exp2().sum(-1).log2()[row]) / _LOG2_E


def _blocks(weight: torch.Tensor) -> torch.Tensor:
    """(rows, vocab) as (rows, blocks, 64), with zeros to fill."""
    short = -weight.shape[-1] % _BLOCK
    if short:
        weight = torch.nn.functional.pad(weight, (0, short))
    return weight.view(len(weight), -1, _BLOCK)


def _nucleus(weight: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero for every token outside the smallest set whose share reaches `top_p`; the likeliest always stays."""
    ordered, order = torch.sort(weight, dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(weight).scatter_(-1, order, ordered)


def _inverse_cdf(blocks: torch.Tensor, edges: torch.Tensor, row: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulative weight exceeds uniform * total, (samples,).

    blocks: (rows, blocks, 64) weights, not normalised; edges: (rows, blocks) cumulative sums of theirs; row, uniform:
    (samples,).
    """
    edges = edges[row]
    total = edges[:, -1]
    target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    block = (edges <= target[:, None]).sum(-1)
    before = torch.where(block > 0, edges.gather(-1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inner = blocks[row, block]
    within = (inner.cumsum(-1) <= (target - before)[:, None]).sum(-1)
    # Rounding can carry the target past the last token of the block that has any weight: take that token then.
    last = _BLOCK - 1 - (inner > 0).flip(-1).to(torch.int8).argmax(-1)
    return block * _BLOCK + torch.minimum(within, last)
