"""The cache of judgements, an SQLite file that several processes write to: no text is judged or counted twice."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.storage.pieces import cut

LEDGER = "judged.sqlite"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS said (judge TEXT, text TEXT, decided TEXT, attempts INTEGER, resent INTEGER, "
    "answer TEXT, PRIMARY KEY (judge, text)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS faults (judge TEXT, rule TEXT, count INTEGER, PRIMARY KEY (judge, rule)) WITHOUT ROWID"
)
_MANY = 500  # SQLite takes some thousand variables in one statement


@dataclass(frozen=True)
class Entry:
    """One text's judgement. `text`: its hash; `decided`: None if the judge gave no answer of the required form.

    `attempts`: how often it was judged; `resent`: requests sent again after server failures; `answer`: the judge's last
    answer.
    """

    text: str
    decided: str | None
    attempts: int
    resent: int
    answer: str


@dataclass(frozen=True)
class Ledger:
    """Judgements by judge and text. Picklable: the file is opened for each call."""

    path: Path

    def read(self, judge: str, texts: Sequence[str]) -> dict[str, str | None]:
        """The judgements of those of these texts that have one."""
        found: dict[str, str | None] = {}
        with self._open() as file:
            for some in cut(texts, _MANY):
                marks = ",".join("?" * len(some))
                found |= file.execute(
                    f"SELECT text, decided FROM said WHERE judge = ? AND text IN ({marks})", (judge, *some)
                ).fetchall()
        return found

    def write(self, judge: str, entries: Sequence[Entry]) -> None:
        """Stores judgements; a text that has one already keeps it."""
        rows = [(judge, one.text, one.decided, one.attempts, one.resent, one.answer) for one in entries]
        with self._open() as file:
            file.executemany("INSERT OR IGNORE INTO said VALUES (?, ?, ?, ?, ?, ?)", rows)

    def count(self, judge: str, faults: Mapping[str, int]) -> None:
        """Adds to the counts of replies of a judge's server that were rejected, by rule."""
        with self._open() as file:
            file.executemany(
                "INSERT INTO faults VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                [(judge, rule, count) for rule, count in faults.items()],
            )

    def summary(self) -> dict[str, dict[str, Any]]:
        """By judge: number of texts, texts without a score, repeated attempts, requests sent again; and `faults`, if
        any: rejected replies of its server, by rule."""
        with self._open() as file:
            rows = file.execute(
                "SELECT judge, COUNT(*), SUM(decided IS NULL), SUM(MAX(attempts - 1, 0)), SUM(resent) FROM said "
                "GROUP BY judge ORDER BY judge"
            ).fetchall()
            faults = file.execute("SELECT judge, rule, count FROM faults ORDER BY judge, rule").fetchall()
        names = ("texts", "no_score", "asked_again", "resent")
        found: dict[str, dict[str, Any]] = {
            judge.rpartition(" ")[0]: dict(zip(names, counts, strict=True)) for judge, *counts in rows
        }
        for judge, rule, count in faults:
            found.setdefault(judge.rpartition(" ")[0], {}).setdefault("faults", {})[rule] = count
        return found

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=60)) as file, file:
            file.executescript(_SCHEMA)
            yield file


def judge_metrics(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """For a stage's metrics: `judges`, the summary of the cache in `folder`; empty if no judge was used."""
    path = folder / LEDGER
    return {"judges": Ledger(path).summary()} if path.exists() else {}
