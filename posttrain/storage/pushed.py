"""`pushed.json` in the run's folder: a record of pushes, for people. What is sent depends on the Hub's state alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from posttrain.storage.files import read_json, write_durably
from posttrain.storage.store import Store


@dataclass(frozen=True)
class Pushed:
    """A pushed round. `sent`: paths of files that were committed; `there`: of files that were on the Hub already."""

    repo: str
    kind: str
    round: int
    key: str
    tag: str
    commit: str
    sent: tuple[str, ...]
    there: tuple[str, ...]
    bytes: int  # of the files that were committed; the Hub may have had their content already


NAME = "pushed.json"


def read(run: Store) -> list[dict[str, Any]]:
    """The pushes, oldest first: repo, kind, round, key, tag, commit, at. Empty before the first."""
    path = run.root / NAME
    return read_json(path).get("pushed", []) if path.exists() else []


def has(run: Store, repo: str, kind: str, number: int, key: str) -> bool:
    """Whether this artifact was pushed there as the policy of this round."""
    wanted = (repo, kind, number, key)
    return any((one["repo"], one["kind"], one["round"], one["key"]) == wanted for one in read(run))


def add(run: Store, pushed: Pushed) -> None:
    """Records a push; replaces an earlier one of the same round to the same repository."""
    fields = {name: value for name, value in asdict(pushed).items() if name not in ("sent", "there", "bytes")}
    place = (pushed.repo, pushed.kind, pushed.round)
    others = [one for one in read(run) if (one["repo"], one["kind"], one["round"]) != place]
    entry = {**fields, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps({"version": 1, "pushed": [*others, entry]}, indent=1, ensure_ascii=False)
    write_durably(run.root / NAME, text + "\n")
