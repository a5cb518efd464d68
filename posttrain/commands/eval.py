"""`posttrain eval`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer

from posttrain.commands.terminal import Terminal, json_text, say


def eval_(
    model: Annotated[str, typer.Argument(help="A run's folder (its promoted policy), a model's folder, or a Hub id.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="Whose prompts and rewards: a name or a path. Default: quickstart, without --tasks."
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            help="A benchmark of lm-evaluation-harness: a name, a task file, or {task: NAME, file: FILE}. Repeatable.",
        ),
    ] = None,
    on: Annotated[Literal["dev", "heldout"], typer.Option("--on", help="Which of its sets.")] = "heldout",
    k: Annotated[int | None, typer.Option("--k", min=1, help="Sampled answers a prompt. Default: evaluate.k.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Evaluate any model on a recipe's prompts by its rewards, or on benchmarks. The figures are those of
    `status --json` for a round.

    posttrain eval runs/quickstart

    posttrain eval ./my-model --recipe ./mine.yaml --on dev --k 16 --json

    posttrain eval ./my-model --tasks gsm8k --tasks ./my-task.yaml --json
    """
    from posttrain.api import evaluate, load_recipe
    from posttrain.inference.models import evaluate_benchmarks

    own = [*(set_ or []), *([f"evaluate.k={k}"] if k else [])]
    own += [f"evaluate.benchmarks=[{', '.join(tasks)}]"] if tasks else []
    name = recipe or "quickstart"
    changed, watcher = load_recipe(name, own), None if as_json else Terminal(lambda number: "")
    found: dict[str, Any] = {}
    lines: list[str] = []
    if recipe or not tasks:
        found[on] = evaluate(model, changed, on, watcher)
        lines += _lines(f"{on} of {name}", found[on])
    if tasks:
        found["benchmarks"] = evaluate_benchmarks(model, changed, watcher)
        lines += [line for one in found["benchmarks"].values() for line in _of_benchmark(one)]
    say(json_text(found) if as_json else "\n".join(lines))


def _of_benchmark(tasks: dict[str, Any]) -> Iterator[str]:
    """One line per metric, with its standard error and the number of questions."""
    for task, figures in tasks.items():
        yield task
        for name, figure in figures.items():
            error = "" if figure["stderr"] is None else f"  ± {figure['stderr']:.3f}"
            yield f"{name:<28}{figure['value']:8.3f}{error}" + (f"  of {figure['n']}" if figure["n"] else "")


def _lines(title: str, found: dict[str, Any]) -> list[str]:
    """One line per figure, with its interval and the number of prompts."""
    figures = {name: figure for name, figure in found.items() if isinstance(figure, dict) and "value" in figure}
    figures |= {
        f"{name}, {how}": figure for name, each in found.get("measure", {}).items() for how, figure in each.items()
    }
    lines = [
        f"{name:<28}{figure['value']:8.3f}  [{figure['ci95'][0]:.3f}, {figure['ci95'][1]:.3f}]  of {figure['n']}"
        for name, figure in figures.items()
        if figure["value"] is not None
    ]
    return [title, *lines, *(f"{name:<28}{found[name]:8.3f}" for name in ("mean_length", "unfinished"))]
