"""`pushed.json` in the run's folder: what was pushed where. The Hub decides what is sent; this is for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from posttrain.store import Store, read_json, write_durably

if TYPE_CHECKING:
    from posttrain.hub.upload import Pushed

NAME = "pushed.json"


def read(run: Store) -> list[dict[str, Any]]:
    """What was pushed, oldest first: repo, kind, round, key, tag, commit, at. Empty before the first push."""
    path = run.root / NAME
    return read_json(path).get("pushed", []) if path.exists() else []


def has(run: Store, repo: str, kind: str, number: int, key: str) -> bool:
    """Whether this artifact was pushed there as the policy of this round."""
    wanted = (repo, kind, number, key)
    return any((one["repo"], one["kind"], one["round"], one["key"]) == wanted for one in read(run))


def add(run: Store, pushed: Pushed) -> None:
    """Write down a push, in place of an earlier one of the same round to the same repository."""
    told = {name: value for name, value in asdict(pushed).items() if name not in ("sent", "there", "bytes")}
    place = (pushed.repo, pushed.kind, pushed.round)
    others = [one for one in read(run) if (one["repo"], one["kind"], one["round"]) != place]
    entry = {**told, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps({"version": 1, "pushed": [*others, entry]}, indent=1, ensure_ascii=False)
    write_durably(run.root / NAME, text + "\n")
