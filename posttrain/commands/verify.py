"""`posttrain verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.commands.terminal import json_text, say
from posttrain.system import bytes_in_words


def verify_(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged files aside; `round` makes them again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Verify the hash of every file of a run. Exit code 5 if anything is damaged.

    posttrain verify runs/quickstart --repair
    """
    from posttrain.errors import DamagedError, InputError
    from posttrain.storage import verify
    from posttrain.storage.store import Store

    store = Store(run)
    if not store.artifacts.is_dir():
        raise InputError(
            "there is no run here", file=str(run), hint="name the folder that `round` was given", rule="command-no-run"
        )
    with store.session():  # while somebody works on it, what is being written looks damaged
        found = verify.inspect(store)
        if repair:
            verify.repair(store, found["findings"])
    found["repaired"] = repair and bool(found["findings"])
    say(json_text(found) if as_json else _told(found))
    if found["findings"] and not repair:
        raise typer.Exit(DamagedError.exit_code)


def _told(found: dict) -> str:
    lines = [f"{each['path']}: {each['what']}; {each['then']}" for each in found["findings"]]
    lines.append(
        f"{found['files']} files in {found['artifacts']} artifacts and {found['checkpoints']} checkpoints, "
        f"{bytes_in_words(found['bytes'])}: {len(lines) or 'nothing'} to repair"
    )
    again = ", ".join(f"{each['stage']} of round {each['round']}" for each in found["runs_again"])
    if found["findings"] and not found["repaired"]:
        lines.append(f"posttrain verify {found['run']} --repair")
    elif again:
        lines.append(f"the same `posttrain round` does again: {again}")
    return "\n".join(lines)
