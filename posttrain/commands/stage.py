"""`posttrain stage`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from posttrain.commands.terminal import json_text, say


def stage(
    folder: Annotated[Path, typer.Argument(help="A folder under RUN/work, with a stage.json.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes or threads.")] = 1,
    task: Annotated[str | None, typer.Option(hidden=True, help="Of which jobs of a cluster this is one.")] = None,
    part: Annotated[str | None, typer.Option(hidden=True, help="INDEX/OF: the shards that it makes.")] = None,
) -> None:
    """Run one stage from its work folder, in this process: to debug it, or on a cluster."""
    if task == "hello":
        from posttrain.execution.task import hello

        hello(folder.resolve(), int(os.environ["SLURM_PROCID"]))
        return
    from posttrain.errors import InputError
    from posttrain.execution.launcher import execute

    if not (folder / "stage.json").is_file():
        raise InputError(
            "no stage.json is here", file=str(folder), hint="name a folder under RUN/work", rule="command-no-stage"
        )
    if task is None:
        say(json_text(execute(folder.resolve(), workers)))
        return
    import posttrain.execution.preload  # noqa: F401 - what it sets for torch
    from posttrain.execution.task import run
    from posttrain.storage.part import Part

    index, _, of = (part or "").partition("/")
    if not run(folder.resolve(), task, Part(int(index), int(of)) if part else None, workers):
        raise typer.Exit(3)
