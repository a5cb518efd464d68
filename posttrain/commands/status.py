"""`posttrain status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.commands.terminal import json_text, say


def status_(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Print the table of a run's rounds.

    posttrain status runs/quickstart --json
    """
    from posttrain.report.reading import open_run
    from posttrain.report.status import status, table

    figures = status(open_run(run))
    say(json_text(figures) if as_json else table(figures))
