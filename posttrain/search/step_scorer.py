"""Scores of steps: by a DPO policy and its reference, or by a step reward model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from posttrain.engines.likelihood import Ids, Likelihoods
from posttrain.engines.load import load
from posttrain.rewards.scoring import cached_scorer
from posttrain.system import device


class StepScorer(Protocol):
    """Scores steps. Picklable: its models are loaded once in each process."""

    def __call__(self, contexts: Sequence[Ids], steps: Sequence[Sequence[Ids]]) -> list[list[float]]:
        """The score of each step after each context, as token ids. No context and no step is empty."""
        ...


@dataclass(frozen=True)
class ByDPO:
    """β (log π_DPO − log π_ref) of a step's tokens. `policy`, `reference`: model folders; `temperature` and `beta` as
    in DPO's loss."""

    policy: str
    reference: str
    dtype: str
    beta: float
    temperature: float

    def __call__(self, contexts: Sequence[Ids], steps: Sequence[Sequence[Ids]]) -> list[list[float]]:
        with_steps = [at for at, some in enumerate(steps) if some]
        asked = [contexts[at] for at in with_steps], [steps[at] for at in with_steps]
        by_policy, by_reference = (
            _model(folder, self.dtype, self.temperature).of(*asked) for folder in (self.policy, self.reference)
        )
        scores: list[list[float]] = [[] for _ in contexts]
        for at, some, others in zip(with_steps, by_policy, by_reference, strict=True):
            scores[at] = [self.beta * (one.total - other.total) for one, other in zip(some, others, strict=True)]
        return scores


@dataclass(frozen=True)
class ByModel:
    """The logit of a step reward model, a folder, at a step's last token."""

    model: str
    dtype: str

    def __call__(self, contexts: Sequence[Ids], steps: Sequence[Sequence[Ids]]) -> list[list[float]]:
        return cached_scorer(self.model, self.dtype).score(contexts, steps)


@functools.lru_cache(maxsize=2)
def _model(folder: str, dtype: str, temperature: float) -> Likelihoods:
    return Likelihoods(load(folder, dtype, device()), temperature)
