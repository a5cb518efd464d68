"""`posttrain report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.commands.terminal import say


def report(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    out: Annotated[Path | None, typer.Option("--out", help="The file. Default: RUN/report.html.")] = None,
) -> None:
    """Write one HTML file about a run: curves, data, answers side by side, lineage. Works during a run, too.

    posttrain report runs/quickstart
    """
    from posttrain.errors import DamagedError, InputError
    from posttrain.report import page
    from posttrain.report.reading import open_run
    from posttrain.storage.files import write_durably

    view = open_run(run, partial=True)
    text = page.html(view)
    target = out or run / "report.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, text)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=str(target), rule="command-output") from error
    say(f"{target}: {len(view.rounds)} rounds, {len(text.encode()) / 1000:,.0f} kB")
    if view.missing:
        more = f" and {len(view.missing) - 1} more, listed in the page" if len(view.missing) > 1 else ""
        raise DamagedError(f"{run} is damaged; the report shows the rest of it: {view.missing[0]}{more}")
