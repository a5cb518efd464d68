"""The charts of step reward models, of the search and of corrections, from the metrics of their stages. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.evaluation import statistics
from posttrain.report.charts import Chart, Series, lines, series
from posttrain.report.reading import Round

INTERVALS = "Bands are 95 % intervals."

Metrics = Mapping[str, Any]


def steps(rounds: Sequence[Round]) -> list[Chart]:
    """How well each round's step reward model knows right steps from wrong ones."""
    by_round = {one.number: one.metrics("step_reward") for one in rounds}
    names = {
        "step_accuracy": "steps, rightly called",
        "error": "answers with a mistake, whose first one is found",
        "right": "answers without one, in which none is called",
        "f1": "F1 of both",
    }
    curves = [
        series(said, {number: metrics.get(name) for number, metrics in by_round.items()})
        for name, said in names.items()
    ]
    caption = (
        "On answers to held-out training prompts, by the labels that sampling gave them. A step is called wrong when "
        f"its logit is 0 or less. {INTERVALS}"
    )
    return [*lines("step-reward", "Step reward model", caption, "share", curves)]


def found(rounds: Sequence[Round]) -> list[Chart]:
    """What search and correction found for prompts that no sample solved, and at what cost."""
    by_stage = {name: {one.number: one.metrics(name) for one in rounds} for name in ("search", "correction")}
    caption = (
        "Of the prompts that no sample solved and that were looked at: by search, and by correction those where search "
        f"found nothing. {INTERVALS}"
    )
    charts: list[Chart] = [
        *lines("found", "Solved by search and correction", caption, "share solved", _curves(by_stage, _share))
    ]
    caption = "Tokens sampled for each prompt that was solved, those for the others included."
    charts += lines("found-cost", "Cost of a solution", caption, "tokens", _curves(by_stage, _cost))
    return charts


def _curves(by_stage: Mapping[str, Mapping[int, Metrics]], figure: Callable[[Metrics], Any]) -> list[Series]:
    return [
        series(name, {number: figure(metrics) for number, metrics in of_rounds.items()})
        for name, of_rounds in by_stage.items()
    ]


def _share(metrics: Metrics) -> Mapping[str, Any] | None:
    prompts = metrics.get("prompts", {})
    if not prompts.get("asked"):
        return None
    return statistics.proportion([1.0] * prompts["solved"] + [0.0] * (prompts["asked"] - prompts["solved"]))


def _cost(metrics: Metrics) -> float | None:
    solved = metrics.get("prompts", {}).get("solved")
    return metrics["tokens"] / solved if solved else None
