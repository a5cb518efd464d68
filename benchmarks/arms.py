"""Arms of a comparison: runs of one recipe with different changes, judged on the same held-out prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.data.tables import GREEDY, SAMPLED
from posttrain.report.reading import open_run
from posttrain.rewards.combine import RIGHT, combine

Row = Mapping[str, Any]


def play(recipe: str, n: int, run: Path, changes: Iterable[str]) -> Path:
    """Runs n rounds, with `--set` for each change; goes on where the run was stopped."""
    words = [word for change in changes for word in ("--set", change)]
    command = [sys.executable, "-m", "posttrain", "round", recipe, "--n", str(n), "--run", str(run), *words]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return run


def judged(run: Path, number: int, counts: Callable[[Row], bool]) -> dict[str, tuple[float, float]]:
    """After a round, of each held-out prompt that counts and can be checked: the share of right samples, and whether
    the greedy answer is right, by the recipe's reward functions."""
    functions = next(one for one in open_run(run).rounds if one.number == number).functions()
    rows = pq.read_table(run / f"round-{number}" / "heldout" / "heldout.parquet").to_pylist()
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        score = combine(json.loads(row["rewards"]), functions)
        if score is not None and row["tag"] in (GREEDY, SAMPLED) and counts(json.loads(row["columns"])):
            found.setdefault(row["prompt_id"], ([], []))[row["tag"] == GREEDY].append(float(score >= RIGHT))
    return {one: (sum(some) / len(some), greedy[0]) for one, (some, greedy) in found.items()}


def is_long(columns: Row) -> bool:
    """Whether a problem of step-problems has five or six steps."""
    return len(columns["steps"].split()) >= 5


def finished(run: Path, n: int) -> bool:
    return (run / "run.json").is_file() and len(open_run(run).rounds) > n


def over_seeds(figures: Sequence[Mapping[str, tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """The means over runs, by prompt in one order: of pass@1 and of greedy."""
    order = sorted(figures[0])
    sampled, greedy = ([sum(one[name][at] for one in figures) / len(figures) for name in order] for at in (0, 1))
    return sampled, greedy


def manifests(run: Path, n: int, names: Iterable[str]) -> list[dict[str, Any]]:
    """Of the stages of these names in rounds 1 to n, where they are there."""
    files = [run / f"round-{number}" / name / "artifact.json" for number in range(1, n + 1) for name in names]
    return [json.loads(file.read_text("utf-8")) for file in files if file.is_file()]
