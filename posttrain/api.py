"""The public Python API. The command line is built on the same functions.

They print nothing, and raise a PosttrainError (`posttrain.errors`) where the command would exit with its code. Stages
run in their own processes, which do not import the caller's script.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.errors import InputError, PosttrainError
from posttrain.execution import retry
from posttrain.execution.cluster import launcher_of
from posttrain.execution.progress import Silent, Watcher
from posttrain.execution.runner import Runner
from posttrain.inference.models import evaluate
from posttrain.loop import play
from posttrain.planning.check import check_run
from posttrain.recipe.load import load as load_recipe
from posttrain.recipe.recipe import Recipe
from posttrain.report.reading import RunView, open_run
from posttrain.report.tracking import Tracked, check
from posttrain.storage.store import Store

if TYPE_CHECKING:
    from posttrain.hub.after_rounds import AfterRounds

__all__ = ["evaluate", "load_recipe", "open_run", "run_rounds"]


def run_rounds(recipe: Recipe, n: int, folder: str | Path | None = None, watcher: Watcher | None = None) -> RunView:
    """Runs rounds of the recipe until `n` are finished, earlier ones counted; fewer if the recipe stops the loop.

    The run is kept in `folder` (default: runs/NAME), and a finished stage never runs again: after a stop or an error
    the same call resumes. `watcher` receives progress events.

    Raises:
        InputError: the recipe's inputs are wrong, or `folder` cannot be a run's; nothing was changed.
        StageError: a stage failed, had no rows left, or there is too little disk or memory.
        LockedError: another process is using this run.
        DamagedError: a file of the run does not match its manifest.
    """
    if n < 1:
        raise InputError(f"{n} rounds cannot be run", hint="ask for at least 1", rule="command-rounds")
    check(recipe.report_to)
    store = Store(Path(folder or Path("runs") / recipe.name))
    watcher = watcher or Silent()
    workers = recipe.compute.workers or os.cpu_count() or 1
    try:
        with store.session():
            check_run(recipe, n, store)
            push = _push(store, recipe, watcher)
            after_round = [each.round_done for each in (*push, Tracked(store, recipe.name, recipe.report_to))]
            launcher = launcher_of(recipe.compute)
            try:
                play(recipe, Runner(store, launcher, watcher, workers, recipe, after_round), n)
            except PosttrainError:
                _finish(push)  # of the rounds that are done
                raise
            _finish(push)
    except OSError as error:
        if retry.is_full(error):
            raise retry.full_disk(error, store.root) from error
        raise
    return open_run(store.root)


def _finish(push: list[AfterRounds]) -> None:
    for each in push:
        each.finish()


def _push(store: Store, recipe: Recipe, watcher: Watcher) -> list[AfterRounds]:
    """The watchers that push promoted rounds during the run; empty without `push:` in the recipe."""
    if recipe.push is None:
        return []
    from huggingface_hub import get_token
    from huggingface_hub.utils import disable_progress_bars

    from posttrain.hub.after_rounds import AfterRounds
    from posttrain.hub.client import HubClient

    disable_progress_bars()  # the watcher shows the stages
    return [AfterRounds(store, recipe.push, lambda: HubClient(get_token()), watcher.note)]
