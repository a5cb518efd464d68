"""What it costs that nothing is lost: the share of a run that goes into fsync, hashes, checkpoints and checks.

    python benchmarks/safety.py --n 6 --run runs/safety [--set KEY=VALUE] [--json FILE]

Plays rounds of the quickstart as the command does, with a clock around each of these calls in each process. Their
seconds are added up as if none ran beside other work, and held against the time of the run. A comparison of two runs,
with and without, would say less: runs on a shared machine differ by more than what is looked for.

What this does not cover: the lock's heartbeat, the look at answers for a collapsed policy, the retries' own notes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer

from posttrain import load_recipe
from posttrain.commands.terminal import Terminal
from posttrain.execution import resources, tokenizer_check
from posttrain.execution.launcher import Forked, execute
from posttrain.execution.runner import Runner
from posttrain.loop import play
from posttrain.report.reading import open_run
from posttrain.report.status import after_round
from posttrain.storage.store import Store
from posttrain.training import run as training

# None calls another, but that `of_inputs` takes the fingerprint of a model from outside: that counts twice.
CLOCKED: dict[str, tuple[tuple[Any, str], ...]] = {
    "files brought to the disk": ((os, "fsync"),),
    "hashes": ((hashlib, "file_digest"),),
    "checkpoints": ((Trainer, "_save_checkpoint"),),
    "checks": (
        (training, "check_finite"),
        (tokenizer_check, "of_inputs"),
        (tokenizer_check, "fingerprint"),
        (resources, "check"),
    ),
}


def clock_all(record: Path) -> None:
    """From here on each of these calls, here and in forked children, leaves a line: what it was, and its seconds."""
    for kind, places in CLOCKED.items():
        for owner, name in places:
            setattr(owner, name, clocked(getattr(owner, name), kind, record))


def clocked(function: Callable[..., Any], kind: str, record: Path) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            with record.open("a") as file:
                file.write(f"{kind}\t{time.perf_counter() - began}\n")

    return run


def run_stage(folder: Path, workers: int, progress: Callable[[int, int, str], None]) -> None:
    clock_all(folder.parent.parent / "clocked.txt")
    execute(folder, workers, progress)


def table(told: dict[str, Any]) -> str:
    """What `--json` wrote, as Markdown."""
    lines = ["| | calls | seconds, added up | share of the run |", "| --- | --- | --- | --- |"]
    for kind, seconds in told["spent"].items():
        lines.append(f"| {kind} | {told['calls'][kind]:,} | {seconds:.2f} | {seconds / told['seconds']:.2%} |")
    return "\n".join([*lines, f"| all, of {told['seconds']:.0f} s | | | {told['share']:.2%} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--run", type=Path, default=Path("runs/safety"))
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    recipe, run = load_recipe("quickstart", given.settings), Store(given.run)
    given.run.mkdir(parents=True)
    clock_all(given.run.resolve() / "clocked.txt")
    began = time.monotonic()
    with run.session():
        shown = Terminal(lambda number: after_round(open_run(run.root).rounds[number]))
        play(
            recipe,
            Runner(run, Forked(run_stage), shown, recipe.compute.workers or os.cpu_count() or 1, recipe),
            given.n,
        )
    wall = time.monotonic() - began
    spent = dict.fromkeys(CLOCKED, 0.0)
    calls = dict.fromkeys(CLOCKED, 0)
    for each in (given.run / "clocked.txt").read_text().splitlines():
        kind, seconds = each.split("\t")
        spent[kind] += float(seconds)
        calls[kind] += 1
    told = {"seconds": wall, "spent": spent, "calls": calls, "share": sum(spent.values()) / wall}
    print(json.dumps(told, indent=1))
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
