"""`posttrain stage`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.commands.terminal import json_text, say


def stage(
    folder: Annotated[Path, typer.Argument(help="A folder under RUN/work, with a stage.json.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes or threads.")] = 1,
) -> None:
    """Run one stage from its work folder, in this process: to debug it, or on a cluster."""
    from posttrain.errors import InputError
    from posttrain.execution.launcher import execute

    if not (folder / "stage.json").is_file():
        raise InputError(
            "no stage.json is here", file=str(folder), hint="name a folder under RUN/work", rule="command-no-stage"
        )
    say(json_text(execute(folder.resolve(), workers)))
