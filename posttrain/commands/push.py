"""`posttrain push`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.commands.terminal import json_text, say
from posttrain.system import bytes_in_words

if TYPE_CHECKING:
    from posttrain.hub.plan import RepoPlan
    from posttrain.storage.pushed import Pushed


def push_(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="The model repository; created if absent.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private.")] = False,
    number: Annotated[int | None, typer.Option("--round", help="The round; 0: the base. Default: the last.")] = None,
    all_rounds: Annotated[bool, typer.Option("--all-rounds", help="Push each promoted round, in order.")] = False,
    data: Annotated[bool, typer.Option("--data", help="Push the rounds' tables too, to OWNER/NAME-data.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent: no token, no network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Push the last promoted policy to the Hub, with a tag and a card. Files that are there already are not sent again.

    posttrain push runs/quickstart --to my-name/my-model --dry-run
    posttrain push runs/quickstart --to my-name/my-model --private --all-rounds --data
    """
    from posttrain.errors import InputError
    from posttrain.hub.plan import make, promoted_rounds
    from posttrain.storage.store import Store

    store = Store(run)
    if all_rounds and number is not None:
        raise InputError("--round and --all-rounds exclude each other", hint="give one of them", rule="command-options")
    numbers = (promoted_rounds(store) or None) if all_rounds else None if number is None else [number]
    plans = make(store, to, private=private, data=data, numbers=numbers)
    if dry_run:
        say(json_text(_described(plans)) if as_json else _shown(plans))
        return
    pushed = _push(store, plans, quiet=as_json)
    if as_json:
        say(json_text({"dry_run": False, "pushed": pushed}))


def _push(store: Any, plans: list[RepoPlan], quiet: bool) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import disable_progress_bars

    from posttrain.hub.client import HubClient
    from posttrain.hub.upload import push, sign_in
    from posttrain.storage import pushed

    if not sys.stderr.isatty():
        disable_progress_bars()
    found: list[dict[str, Any]] = []

    def done(one: Pushed) -> None:
        pushed.add(store, one)
        found.append(asdict(one))
        if not quiet:
            say(_line(one))

    client = HubClient(get_token(), say=lambda text: say(text, error=True))
    with store.lock("push.lock"):
        sign_in(client)
        for plan in plans:
            push(plan, client, done)
            if not quiet:
                say(f"  {constants.ENDPOINT}/{'datasets/' if plan.kind == 'dataset' else ''}{plan.repo}")
    return found


def _line(pushed: Pushed) -> str:
    if not pushed.sent:
        return f"{pushed.repo}: {pushed.tag} is there already, all {len(pushed.there)} files"
    there = f"; {len(pushed.there)} were there already" if pushed.there else ""
    return f"{pushed.repo}: {pushed.tag}, {len(pushed.sent)} files sent ({bytes_in_words(pushed.bytes)}){there}"


def _described(plans: list[RepoPlan]) -> dict[str, Any]:
    repos = [
        {
            "repo": plan.repo,
            "kind": plan.kind,
            "private": plan.private,
            "rounds": [
                {
                    "round": one.number,
                    "key": one.key,
                    "tag": one.tag,
                    "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in one.files],
                    "card": one.card,
                }
                for one in plan.rounds
            ],
        }
        for plan in plans
    ]
    return {"dry_run": True, "repos": repos}


def _shown(plans: list[RepoPlan]) -> str:
    lines = ["Nothing is sent. This would go:"]
    for plan in plans:
        lines.append(f"\n{plan.repo} ({plan.kind}, {'private' if plan.private else 'public'} if it is new)")
        for one in plan.rounds:
            size = sum(file.size for file in one.files)
            lines.append(f"  {one.tag}: {one.key}, {len(one.files)} files, {bytes_in_words(size)}")
            lines += [f"    {bytes_in_words(file.size):>9}  {file.sha256[:12]}  {file.path}" for file in one.files]
    for plan in plans:
        lines.append(f"\n--- the card of {plan.repo} ---\n{plan.rounds[-1].card}")
    return "\n".join(lines)
