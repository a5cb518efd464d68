"""The loop itself: six rounds of the quickstart, how busy they keep the cores, what is not a stage's own work.

    python benchmarks/loop.py [--n 6] [--set KEY=VALUE] [--folder runs/loop] [--json FILE]

- `rounds`: one `posttrain round --n N`, all of its processes; `cores` is CPU seconds over wall seconds.
- `outside stages`: the part of it in which no stage ran: imports, keys, forks, decisions. A stage's time is what its
  artifact says, ending when the artifact was published.
- `nothing to do`: the same command again, median of --repeats.
- `1 worker`, `N workers`: the last round's sampling and scoring again, in turn, medians of --repeats; the time of one
  worker over that of all says how many cores' worth of work they do.

What this does not cover: other machines' clocks, which change with how many cores are busy; GPUs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from measuring import cost

AGAIN = ("answers_samples", "scores")  # roles in a round


@dataclass(frozen=True)
class Figure:
    """One line of the table; `remark` holds the ratio that the line is for."""

    what: str
    wall_s: float
    remark: str = ""


def outside(run: Path, started: float, wall_s: float) -> float:
    """Seconds of the run in which no stage ran. `started`: when it began, in seconds since the epoch."""
    spans = []
    for path in (run / "artifacts").glob("*/artifact.json"):
        ended = path.stat().st_mtime
        spans.append((ended - json.loads(path.read_text(encoding="utf-8"))["seconds"], ended))
    covered, reached = 0.0, started
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return wall_s - covered


def again(run: Path, role: str, workers: int) -> float:
    """Wall seconds of the last round's stage, done again in a process of its own with the libraries imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["posttrain.execution.preload"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_again, args=(run, role, workers, sender))
    child.start()
    seconds = receiver.recv()
    child.join()
    return seconds


def _again(run: Path, role: str, workers: int, sender: Connection) -> None:
    import torch

    from posttrain import load_recipe, open_run, shipped
    from posttrain.job import Job
    from posttrain.stages import run_stage

    torch.set_num_threads(1)
    manifest = open_run(run).rounds[-1].manifests[role]
    recipe = load_recipe(str(run / "recipe.yaml"), files=False)
    inputs = {role: run / "artifacts" / key for role, key in manifest["input_keys"].items()}
    base = shipped.locate("data", recipe.model.path)
    inputs = {role: path if path.exists() else base for role, path in inputs.items()}
    files = {Path(entry.use).name: entry.use for entry in recipe.reward if not entry.is_reward_model}
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder, "out"), Path(folder, "scratch")
        out.mkdir()
        scratch.mkdir()
        runtime = {
            "rewards": [{"use": files.get(one["use"], one["use"])} for one in manifest["config"].get("rewards", [])]
        }
        job = Job(manifest["config"], inputs, out, scratch, seed=0, runtime=runtime, workers=workers)
        started = time.perf_counter()
        run_stage(manifest["stage"], job)
        sender.send(time.perf_counter() - started)


def measure(folder: Path, n: int, repeats: int, settings: Sequence[str]) -> list[Figure]:
    run, log, workers = folder / "run", folder / "log.txt", os.cpu_count() or 1
    command = [sys.executable, "-m", "posttrain", "round", "quickstart", "--n", str(n), "--run", str(run)]
    command += [part for setting in settings for part in ("--set", setting)]
    started = time.time()
    whole = cost([command], log)
    idle = outside(run, started, whole.wall_s)
    nothing = statistics.median(cost([command], log).wall_s for _ in range(repeats))
    figures = [
        Figure(f"{n} rounds", whole.wall_s, f"{whole.cpu_s / whole.wall_s:.2f} cores busy"),
        Figure("outside stages", idle, f"{idle / whole.wall_s:.1%} of the rounds"),
        Figure("nothing to do", nothing),
    ]
    for role in AGAIN:
        stage = role.replace("_", " ")
        sides: dict[int, list[float]] = {1: [], workers: []}
        for _ in range(repeats):
            for side, seconds in sides.items():
                seconds.append(again(run, role, side))
        one, all_of_them = (statistics.median(sides[side]) for side in (1, workers))
        figures.append(Figure(f"{stage}, 1 worker", one))
        figures.append(Figure(f"{stage}, {workers} workers", all_of_them, f"{one / all_of_them:.2f} × as fast"))
    return figures


def table(figures: Sequence[Figure]) -> str:
    """Markdown."""
    lines = ["| what | wall s | |", "| --- " * 3 + "|"]
    return "\n".join([*lines, *(f"| {one.what} | {one.wall_s:.2f} | {one.remark} |" for one in figures)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=6, help="rounds")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/loop"), help="must not be there yet")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if folder.exists():
        parser.error(f"{given.folder} is there already; remove it, or name another --folder")
    folder.mkdir(parents=True)
    figures: list[Any] = measure(folder, given.n, given.repeats, given.settings)
    print(table(figures))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
