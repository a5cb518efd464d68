"""Figures with intervals, and the paired test of the gate. Pure; scipy is imported where it is used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FEW = 30  # questions, below which an interval is wide
Figure = dict[str, Any]  # {"value": float | None, "ci95": [low, high] | None, "n": int}


def proportion(hits: Sequence[float]) -> Figure:
    """Mean of 0/1 outcomes with the interval of the Llama 3 paper (section 5): 1.96 √(S(1−S)/N).

    Where all outcomes are alike that has no width; there it is the exact interval (Clopper and Pearson).
    """
    if not hits:
        return {"value": None, "ci95": None, "n": 0}
    value = sum(hits) / len(hits)
    half = 1.96 * math.sqrt(value * (1 - value) / len(hits))
    if value in (0.0, 1.0):
        half = 1 - 0.025 ** (1 / len(hits))
    return {"value": value, "ci95": [max(0.0, value - half), min(1.0, value + half)], "n": len(hits)}


def mean(values: Sequence[float]) -> Figure:
    """Mean of one value per prompt with its normal 95 % interval (sample standard deviation over prompts)."""
    count = len(values)
    if not count:
        return {"value": None, "ci95": None, "n": 0}
    value = sum(values) / count
    deviation = math.sqrt(sum((x - value) ** 2 for x in values) / (count - 1)) if count > 1 else 0.0
    half = 1.96 * deviation / math.sqrt(count)
    return {"value": value, "ci95": [value - half, value + half], "n": count}


def mean_share(values: Sequence[float]) -> Figure:
    """As `mean`, of values in [0, 1], which the interval does not leave."""
    figure = mean(values)
    if figure["ci95"]:
        low, high = figure["ci95"]
        figure["ci95"] = [max(0.0, low), min(1.0, high)]
    return figure


def pass_at(k: int, answers: Sequence[tuple[int, int]]) -> Figure:
    """pass@k: the chance that one of k answers to a prompt is right, a mean over prompts with its 95 % interval.

    answers: how many each prompt has, and how many of them are right. From n answers of which c are right it is
    estimated without bias by 1 − C(n − c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, section 2.1). A prompt with
    fewer than k answers is left out.
    """
    return mean_share([1 - math.comb(n - c, k) / math.comb(n, k) for n, c in answers if n >= k])


def known_mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None where none is known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def paired_difference(new: Sequence[float], old: Sequence[float], seed: int = 0) -> Figure:
    """Mean of new − old over the same prompts with its bootstrap 95 % interval (percentile, 2,000 resamples)."""
    import numpy as np
    from scipy.stats import bootstrap

    if len(new) != len(old):
        raise ValueError(f"{len(new)} new figures against {len(old)} old ones: not the same prompts")
    difference = np.asarray(new, dtype=np.float64) - np.asarray(old, dtype=np.float64)
    if len(difference) < 2 or np.ptp(difference) == 0:
        value = float(difference.mean()) if len(difference) else 0.0
        return {"value": value, "ci95": [value, value], "n": len(difference)}
    random = np.random.default_rng(seed)
    found = bootstrap((difference,), np.mean, n_resamples=2000, method="percentile", rng=random).confidence_interval
    return {"value": float(difference.mean()), "ci95": [float(found.low), float(found.high)], "n": len(difference)}


def clear(difference: Mapping[str, Any]) -> bool:
    """Whether all of its interval is on one side of 0. One without a width (a single prompt, or the same difference at
    each) says nothing."""
    low, high = difference["ci95"]
    return low < high and (low > 0 or high < 0)


def in_words(figure: Mapping[str, Any] | None, none: str = "–") -> str:
    """`0.600 [0.550, 0.650]`: the value, and its interval where it has one. `none`: for what has no value."""
    if not figure or figure["value"] is None:
        return none
    value, ends = f"{figure['value']:.3f}", [f"{end:.3f}" for end in figure["ci95"] or ()]
    return f"{value} [{', '.join(ends)}]" if ends else value
