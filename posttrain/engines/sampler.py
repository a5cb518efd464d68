"""From logits to tokens: what the engines share, so that the same seeds give the same tokens in each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

_BLOCK = 64
_CACHED = 1 << 18  # logits in float32 that fit into a core's cache
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
    rows, short = len(logits), -logits.shape[-1] % _BLOCK
    if short:
        logits = torch.nn.functional.pad(logits, (0, short), value=-torch.inf)
    if temperature == 0:
        parts = [(part.argmax(-1), part.logsumexp(-1)) for part in map(torch.Tensor.float, _parts(logits))]
        likeliest, total = (torch.cat(kind)[row] for kind in zip(*parts, strict=True))
        return likeliest, logits[row, likeliest].float() - total
    likeliest = None if greedy is None else logits.argmax(-1)
    plain = temperature == 1 and top_p == 1
    highest, sums, totals = [], [], []
    for part in _parts(logits):
        highest.append(part.amax(-1, keepdim=True).float())
        above = _above(part, highest[-1])
        if not plain:
            totals.append(above.exp2().sum(-1))
        weight = _weight(above, temperature)
        if top_p < 1:
            weight = _nucleus(weight, top_p)
            part.masked_fill_(weight == 0, -torch.inf)
        # Sums of blocks of 64: one cumulative sum over a whole vocabulary would be the slowest step of all.
        sums.append(weight.view(len(part), -1, _BLOCK).sum(-1))
    top, edges = torch.cat(highest)[row], torch.cat(sums).cumsum(-1)[row]
    block, target = _inverse_cdf(edges, uniform)
    # The same weights once more: to keep all of them would cost more.
    within = _weight(_above(logits.view(rows, -1, _BLOCK)[row, block], top), temperature)
    token = block * _BLOCK + _inside(within, target)
    if greedy is not None and likeliest is not None:
        token = torch.where(greedy, likeliest[row], token)
    above = _above(logits[row, token][:, None], top)[:, 0]
    if plain:
        return token, (above.exp2_() / edges[:, -1]).log_()
    return token, (above - torch.cat(totals).log2()[row]) / _LOG2_E


def _parts(logits: torch.Tensor) -> Sequence[torch.Tensor]:
    """Rows of (rows, vocab) that a CPU keeps in its cache while several operations are done to them."""
    return logits.split(max(1, _CACHED // logits.shape[-1])) if logits.device.type == "cpu" else [logits]


def _above(logits: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """Differences in float32, in powers of 2: torch's exp takes several times as long on some processors."""
    return (logits.float() - highest).mul_(_LOG2_E)


def _weight(above: torch.Tensor, temperature: float) -> torch.Tensor:
    """Not normalised. Overwrites `above` where the temperature is 1."""
    return above.exp2_() if temperature == 1 else (above / temperature).exp2_()


def _nucleus(weight: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero for every token outside the smallest set whose share reaches `top_p`; the likeliest always stays."""
    ordered, order = torch.sort(weight, dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(weight).scatter_(-1, order, ordered)


def _inverse_cdf(edges: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The block in which the cumulative weight exceeds uniform * total, (samples,), and what of that is left for it.

    edges: (samples, blocks) cumulative weights; uniform: (samples,).
    """
    total = edges[:, -1]
    target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    block = (edges <= target[:, None]).sum(-1)
    before = torch.where(block > 0, edges.gather(-1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    return block, target - before


def _inside(weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first token of a block whose cumulative weight exceeds the target, (samples,). weight: (samples, 64)."""
    within = (weight.cumsum(-1) <= target[:, None]).sum(-1)
    # Rounding can carry the target past the last token of the block that has any weight: take that token then.
    last = _BLOCK - 1 - (weight > 0).flip(-1).to(torch.int8).argmax(-1)
    return torch.minimum(within, last)
