"""`posttrain round`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.commands.completion import recipes
from posttrain.commands.terminal import Terminal, say


def round_(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name, or a path.", autocompletion=recipes)
    ] = "quickstart",
    n: Annotated[int, typer.Option("--n", min=1, help="Total number of rounds; finished ones count.")] = 1,
    run: Annotated[Path | None, typer.Option("--run", help="The run's folder. Default: runs/RECIPE.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")] = None,
) -> None:
    """Run rounds until N are finished. Finished stages are not run again; after a stop the same command goes on.

    posttrain round --n 6

    posttrain round ./mine.yaml --n 2 --set dpo.learning_rate=2e-4
    """
    from posttrain.commands.stopping import stoppable

    with stoppable():
        _round(recipe, n, run, set_ or [])


def _round(recipe: str, n: int, folder: Path | None, overrides: list[str]) -> None:
    from posttrain.api import load_recipe, open_run, run_rounds
    from posttrain.report.status import after_round, status, table

    resolved = load_recipe(recipe, overrides)
    root = folder or Path("runs") / resolved.name
    run = run_rounds(resolved, n, root, Terminal(lambda number: after_round(open_run(root).rounds[number])))
    say(table(status(run)))
    say(f"\nThe promoted policy: {run.policy}")
    say(f'  AutoModelForCausalLM.from_pretrained("{run.policy}")')
    say(f"The same table later: posttrain status {run.root}")
    say(f"Curves, data and answers in one file: posttrain report {run.root}")
