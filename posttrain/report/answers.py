"""Answers for the report: to held-out prompts in every round, and the best and worst samples of one round.

Tables are streamed; what is kept of each is a verdict a prompt, and the few answers that are shown.
"""

from __future__ import annotations

import heapq
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.data.messages import text_of
from posttrain.data.tables import GREEDY, SAMPLED, by_prompt
from posttrain.evaluation import statistics
from posttrain.evaluation.statistics import Figure
from posttrain.rewards.combine import RIGHT, combine

LONGEST = 1500  # characters shown of one text
_COLUMNS = ["prompt_id", "tag", "completion", "n_tokens", "rewards"]
_PIECES = re.compile(r"\s+|\w+|[^\w\s]")
_ALIKE = 0.3  # below this share of common words an answer is another one, not a changed one


@dataclass
class Survey:
    """One round's answers to the held-out prompts. `right`: whether the greedy answer is right, by prompt, in order."""

    right: dict[str, bool | None]
    length: Figure  # tokens of the sampled answers, a mean a prompt
    distinct: Figure  # share of different ones among them


def survey(table: Path, weights: Mapping[str, float]) -> Survey:
    """Surveys a table of answers. `weights`: of the reward functions that decide what is right."""
    right: dict[str, bool | None] = {}
    lengths, distinct = array("d"), array("d")
    for rows in by_prompt(table, _COLUMNS):
        if rows[0]["tag"] == GREEDY:
            verdict = combine(rows[0]["rewards"], weights)
            right[rows[0]["prompt_id"]] = None if verdict is None else verdict >= RIGHT
        elif rows[0]["tag"] == SAMPLED:
            lengths.append(sum(row["n_tokens"] for row in rows) / len(rows))
            distinct.append(len({text_of(row["completion"]) for row in rows}) / len(rows))
    return Survey(right, statistics.mean(lengths), statistics.mean(distinct))


KINDS = {
    "gained": "wrong by the base, right by the last round",
    "lost": "right by the base, wrong by the last round",
    "between": "same verdict as the base in the last round, but not throughout",
    "wrong": "wrong in every round",
    "right": "right in every round",
    "open": "without a verdict: no reward function scores it",
}


def kinds(verdicts: Sequence[Mapping[str, bool | None]]) -> dict[str, list[str]]:
    """Prompts that all rounds answered, by what became of their greedy answer; each kind of `KINDS`, in their order."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for prompt in verdicts[0] if verdicts else ():
        if all(prompt in one for one in verdicts):
            found[_kind([one[prompt] for one in verdicts])].append(prompt)
    return found


def _kind(verdicts: Sequence[bool | None]) -> str:
    if None in verdicts:
        return "open"
    if verdicts[0] != verdicts[-1]:
        return "gained" if verdicts[-1] else "lost"
    return "between" if len(set(verdicts)) > 1 else "right" if verdicts[0] else "wrong"


def greedy(table: Path, prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The greedy answers to these prompts: rows of the table, by prompt."""
    columns = [*_COLUMNS, "prompt"]
    wanted = [("prompt_id", "in", list(prompts)), ("tag", "==", GREEDY)]
    return {row["prompt_id"]: row for row in pq.read_table(table, columns=columns, filters=wanted).to_pylist()}


@dataclass
class Scored:
    """One round's scored samples: each reward's values, and of the prompts' best and worst answers the extremes."""

    values: dict[str, array[float]] = field(default_factory=dict)
    best: list[dict[str, Any]] = field(default_factory=list)
    worst: list[dict[str, Any]] = field(default_factory=list)


def scored(table: Path, shown: int) -> Scored:
    """`shown`: how many of the best and of the worst; of each prompt at most one. Equal ones in the prompts' order."""
    found = Scored()
    for group in _scored_prompts(table, found.values):
        known = [row for row in group if row["score"] is not None]
        if known:
            top, low = max(known, key=_score), min(known, key=_score)
            found.best = heapq.nlargest(shown, [*found.best, top], key=_score)
            found.worst = heapq.nsmallest(shown, [*found.worst, low], key=_score)
    return found


def _score(row: Mapping[str, Any]) -> float:
    return row["score"]


def _scored_prompts(table: Path, values: dict[str, array[float]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each prompt; on the way, all that the rewards said goes into `values`."""
    for rows in by_prompt(table, ["prompt_id", "prompt", "completion", "rewards", "score"]):
        for row in rows:
            for name, value in {**row["rewards"], "score": row["score"]}.items():
                if value is not None:
                    values.setdefault(name, array("d")).append(value)
        yield rows


def shortened(text: str) -> tuple[str, int]:
    """The text as it is shown, and how many characters are left out."""
    return text[:LONGEST], max(len(text) - LONGEST, 0)


def changes(old: str, new: str) -> list[tuple[str, str]]:
    """`new`, piece by piece, as ("same" | "added", text), with ("removed", text) of `old` between; word by word.

    One that has little in common with the old one is added as a whole.
    """
    before, after = _PIECES.findall(old), _PIECES.findall(new)
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    if matcher.ratio() < _ALIKE:
        return [("added", new)]
    pieces = []
    for kind, from_, to, start, stop in matcher.get_opcodes():
        if kind == "equal":
            pieces.append(("same", "".join(after[start:stop])))
        else:
            pieces += [("removed", "".join(before[from_:to])), ("added", "".join(after[start:stop]))]
    return [(kind, text) for kind, text in pieces if text]
