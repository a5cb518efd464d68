"""`posttrain eval`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from posttrain.commands.terminal import Terminal, json_text, say


def eval_(
    model: Annotated[str, typer.Argument(help="A run's folder (its promoted policy), a model's folder, or a Hub id.")],
    recipe: Annotated[
        str, typer.Option("--recipe", help="Whose prompts and rewards: a name or a path.")
    ] = "quickstart",
    on: Annotated[Literal["dev", "heldout"], typer.Option("--on", help="Which of its sets.")] = "heldout",
    k: Annotated[int | None, typer.Option("--k", min=1, help="Sampled answers a prompt. Default: evaluate.k.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Evaluate any model on a recipe's prompts by its rewards. The figures are those of `status --json` for a round.

    posttrain eval runs/quickstart

    posttrain eval ./my-model --recipe ./mine.yaml --on dev --k 16 --json
    """
    from posttrain.api import evaluate, load_recipe

    changed = load_recipe(recipe, [*(set_ or []), *([f"evaluate.k={k}"] if k else [])])
    found = evaluate(model, changed, on, None if as_json else Terminal(lambda number: ""))
    say(json_text({on: found}) if as_json else "\n".join(_lines(f"{on} of {recipe}", found)))


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
