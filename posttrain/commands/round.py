"""`posttrain round`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.commands.completion import recipes
from posttrain.commands.terminal import Terminal, say


def round_(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name, or a path.", autocompletion=recipes)
    ] = "quickstart",
    n: Annotated[int, typer.Option("--n", min=1, help="How many rounds there shall be in all.")] = 1,
    run: Annotated[Path | None, typer.Option("--run", help="The run's folder. Default: runs/RECIPE.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")] = None,
) -> None:
    """Run rounds until N are there. Finished stages are never done again; after a stop the same command goes on.

    posttrain round --n 6

    posttrain round ./mine.yaml --n 2 --set dpo.learning_rate=2e-4
    """
    from posttrain.commands.stopping import stoppable

    with stoppable():
        _round(recipe, n, run, set_ or [])


def _round(recipe: str, n: int, run: Path | None, overrides: list[str]) -> None:
    from posttrain.execution import retry
    from posttrain.recipe.load import load
    from posttrain.report.status import status, table
    from posttrain.report.tracking import check
    from posttrain.storage.store import Store

    resolved = load(recipe, overrides)
    check(resolved.report_to)
    store = Store(run or Path("runs") / resolved.name)
    try:
        _play(store, resolved, n)
    except OSError as error:
        if retry.is_full(error):
            raise retry.full_disk(error, store.root) from error
        raise
    figures = status(store)
    policy = store.root / figures["policy"]
    say(table(figures))
    say(f"\nThe promoted policy: {policy}")
    say(f'  AutoModelForCausalLM.from_pretrained("{policy}")')
    say(f"The same table later: posttrain status {store.root}")
    say(f"Curves, data and answers in one file: posttrain report {store.root}")


def _play(store: Any, recipe: Any, n: int) -> None:
    from posttrain.execution.launcher import Forked
    from posttrain.execution.runner import Runner
    from posttrain.loop import play
    from posttrain.planning.check import check_run
    from posttrain.report.status import HEADER
    from posttrain.report.tracking import Tracked

    workers = recipe.compute.workers or os.cpu_count() or 1
    with store.session():
        check_run(recipe, n, store)
        terminal = Terminal(lambda number: _last_line(store, number, HEADER), lambda number: push(number))
        push, finish_push = _pushing(store, recipe, terminal)
        watcher = Tracked(terminal, store, recipe.name, recipe.report_to)
        play(recipe, Runner(store, Forked(), watcher, workers, recipe), n)
        finish_push()


def _pushing(store: Any, recipe: Any, terminal: Any) -> tuple[Callable[[int], None], Callable[[], None]]:
    """What is called with each round that is done, and at the end. Without `push:` in the recipe they do nothing."""
    if recipe.push is None:
        return lambda number: None, lambda: None
    from huggingface_hub import get_token
    from huggingface_hub.utils import disable_progress_bars

    from posttrain.hub.after_rounds import AfterRounds
    from posttrain.hub.client import Talk

    disable_progress_bars()  # the terminal shows the stages
    after = AfterRounds(store, recipe.push, lambda: Talk(get_token()), terminal.note)
    return after.round_done, after.finish


def _last_line(store: Any, number: int, header: str) -> str:
    from posttrain.report.status import WATCH_HEADER, collapse_lines, line, status, watch_lines

    shown = next(entry for entry in status(store)["rounds"] if entry["round"] == number)
    watched = watch_lines(shown)
    return "\n".join([header, line(shown), *collapse_lines(shown), *([WATCH_HEADER, *watched] if watched else [])])
