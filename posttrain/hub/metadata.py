"""The metadata of a model card: base model, data sets, licence, tags, and the figures as a model index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from posttrain.hub.run_summary import RunSummary
from posttrain.stages.registry import STAGES

TASK = "text-generation"
_LICENCE = ("license", "license_name", "license_link", "language")


def metadata(summary: RunSummary, repo: str, data_repo: str | None) -> ModelCardData:
    """The card's metadata. Bases and data sets that are not on the Hub are left out: the text names those."""
    recipe = summary.recipe
    tags = ["posttrain", "trl", "rejection-sampling"]
    tags += [one.name.replace("_", "-") for one in STAGES.values() if one.trained and recipe.get(one.name)]
    named = {*_hub_datasets(recipe), *([data_repo] if data_repo else [])}
    datasets: list[str] = sorted(named)
    licence = {key: summary.base_card[key] for key in _LICENCE if summary.base_card.get(key)}
    return ModelCardData(
        base_model=summary.base if summary.base_on_hub else None,
        datasets=datasets or None,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=tags,
        model_name=repo.split("/")[1],
        eval_results=eval_results(summary) or None,
        **licence,
    )


def eval_results(summary: RunSummary) -> list[EvalResult]:
    """The round's figures on the held-out prompts and on benchmarks; `args` of each holds its 95 % interval and number
    of prompts."""
    source = (summary.recipe.get("prompts") or {}).get("heldout") or {}
    name = source.get("dataset_name")
    shown = name or file_name(source)
    heldout = [
        EvalResult(
            task_type=TASK,
            dataset_type=name or shown,
            dataset_name=shown,
            dataset_config=source.get("name"),
            dataset_split=source.get("split") or "heldout",
            dataset_revision=source.get("revision"),
            metric_type=kind,
            metric_name=title,
            metric_value=round(figure["value"], 4),
            metric_args={"ci95": [round(bound, 4) for bound in figure["ci95"]], "n": figure["n"]},
        )
        for kind, title, figure in measured(summary, summary.rounds[-1])
    ]
    return heldout + [
        EvalResult(
            task_type=TASK,
            dataset_type=task,
            dataset_name=task,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(figure["value"], 4),
            metric_args={"ci95": figure["ci95"], "stderr": figure["stderr"], "n": figure["n"]},
        )
        for tasks in summary.rounds[-1].get("benchmarks", {}).values()
        for task, figures in tasks.items()
        for metric, figure in figures.items()
    ]


def measured(summary: RunSummary, shown: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Metric, title and figure of each held-out figure that is comparable between rounds."""
    heldout = (shown.get("evaluate") or {}).get("heldout") or {}
    section = summary.recipe.get("evaluate") or {}
    at, k = f"T = {section.get('temperature', 1.0)}", section.get("k", "k")
    names = {"greedy": ("accuracy", "accuracy, greedy")}
    names |= {key: (key, f"{key}, {at}") for key in heldout if key.startswith("pass@") and key[5:].isdigit()}
    found = [(*names[key], heldout[key]) for key in names if key in heldout]
    ways = {"greedy": "greedy", "sampled": f"mean of {k}, {at}", "reward_model_pick": f"the reward model's pick of {k}"}
    for measure, figures in (heldout.get("measure") or {}).items():
        found += [(f"{measure}_{way}", f"{measure}, {ways.get(way, way)}", one) for way, one in figures.items()]
    yield from (each for each in found if each[2] and each[2]["value"] is not None)


def file_name(prompts: Mapping[str, Any]) -> str:
    return Path(prompts.get("path") or "unknown").name


def _hub_datasets(recipe: Any) -> Iterator[str]:
    """Every `dataset_name` in the recipe, wherever it stands."""
    if isinstance(recipe, Mapping):
        if isinstance(recipe.get("dataset_name"), str):
            yield recipe["dataset_name"]
        for value in recipe.values():
            yield from _hub_datasets(value)
    elif isinstance(recipe, list):
        for value in recipe:
            yield from _hub_datasets(value)
