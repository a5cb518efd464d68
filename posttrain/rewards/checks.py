"""Detects answers and scores from which nothing can be learned: of a collapsed policy, or of a constant reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from posttrain.errors import EmptyStageError, StageError
from posttrain.rewards.combine import RIGHT

MOST = 0.95  # from this share of its answers on, a policy counts as collapsed
BEFORE = 0.5  # below this share the policy before does not
ENOUGH = 100  # scores: fewer may all be the same by chance


@dataclass(frozen=True)
class Shares:
    """Shares of a policy's answers that are empty, and that were cut off."""

    empty: float
    endless: float


def shares(table: Path) -> Shares:
    """The shares of a table of samples."""
    empty = ended = rows = 0
    for batch in pq.ParquetFile(table).iter_batches(columns=["completion", "finish"]):
        texts = batch["completion"].flatten().field("content")  # a message each
        empty += sum(not text.strip() for text in texts.to_pylist())
        ended += sum(finish == "stop" for finish in batch["finish"].to_pylist())
        rows += batch.num_rows
    return Shares(empty / rows, 1 - ended / rows) if rows else Shares(0.0, 0.0)


def check_not_empty(table: Path, *policies: Path) -> None:
    """Raises StageError if nearly all answers are empty. Answers without an end are no sign by themselves, as base
    models give those: see `collapsed`."""
    found = shares(table)
    if found.empty >= MOST:
        raise StageError(
            f"the policy has collapsed: {found.empty:.0%} of its answers are empty. It is "
            f"{' or '.join(policy.name for policy in policies)}; the last promoted one is intact, in the run's folder "
            "`policy`. Lower the learning rate or the steps of the stage that trained it, or look at its data"
        )


def collapsed(candidate: Shares, incumbent: Shares) -> str | None:
    """Why the candidate counts as collapsed, compared to the policy before; None if it does not."""
    if candidate.empty >= MOST and incumbent.empty < BEFORE:
        return f"{candidate.empty:.0%} of its answers are empty (before: {incumbent.empty:.0%})"
    if candidate.endless >= MOST and incumbent.endless < BEFORE:
        return f"{candidate.endless:.0%} of its answers do not end (before: {incumbent.endless:.0%})"
    return None


def constant(values: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> dict[str, float]:
    """The rewards that gave the same value to all answers that they scored (at least two), with that value."""
    found = {}
    for name in names:
        given = [value for row in values if (value := row.get(name)) is not None]
        if len(given) > 1 and len(set(given)) == 1:
            found[name] = given[0]
    return found


def check_scores(scores: Sequence[float], same: Mapping[str, float]) -> None:
    """Raises EmptyStageError if all scores are equal and none is right. All right is no error: see `constant`."""
    if len(scores) >= ENOUGH and len(set(scores)) == 1 and scores[0] < RIGHT:
        named = ", ".join(f"{name}: {value:g}" for name, value in same.items())
        raise EmptyStageError(
            f"all {len(scores)} answers have the score {scores[0]:g} ({named}), so nothing can be learned from them. "
            "Is the reward right (`posttrain check` scores its golden cases)? Otherwise take easier prompts, a larger "
            "k, or a better model"
        )
