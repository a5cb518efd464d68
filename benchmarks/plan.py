"""What `posttrain check` says that rounds take, beside what they then take.

    python benchmarks/plan.py [--n 6] [--recipe quickstart] [--set KEY=VALUE] [--repeats 3] [--folder runs/plan]

`check` is run --repeats times (the figures are medians), then `posttrain round` with a fresh run folder. Memory is the
sum of proportional set sizes of the command and all it started, read twice a second: a shorter peak can be missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import proportional_mib, tree

from posttrain import open_run


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    planned: float
    measured: float


def planned(command: list[str], repeats: int) -> tuple[float, dict[str, float]]:
    """Seconds of `check`, and what its plan says; medians."""
    seconds, plans = [], []
    for _ in range(repeats):
        began = time.monotonic()
        done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
        seconds.append(time.monotonic() - began)
        plans.append(json.loads(done.stdout)["plan"])
    told = {name: statistics.median(plan[name] for plan in plans) for name in ("seconds", "memory", "disk", "steps")}
    return statistics.median(seconds), told


def measured(command: list[str], run: Path) -> dict[str, float]:
    """The same of the rounds themselves."""
    began, most = time.monotonic(), 0.0
    with (run.parent / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            most = max(most, proportional_mib(tree(process.pid)))
            time.sleep(0.5)
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: failed, see {run.parent / 'log.txt'}")
    disk = sum(path.stat().st_size for path in (run / "artifacts").rglob("*") if path.is_file())
    return {"seconds": seconds, "memory": most * 2**20, "disk": disk, "steps": steps(run)}


def steps(run: Path) -> int:
    """Of all trainings of the run."""
    made = {one.keys[role]: manifest for one in open_run(run).rounds for role, manifest in one.manifests.items()}
    return sum(manifest["metrics"].get("steps", 0) for manifest in made.values())


def table(told: Mapping[str, Any]) -> str:
    """What `--json` wrote, as Markdown."""
    lines = ["| | planned | measured | planned / measured |", "| --- | --- | --- | --- |"]
    units = {"seconds": (1.0, "s"), "memory": (1e9, "GB"), "disk": (1e6, "MB"), "steps": (1.0, "")}
    for figure in (Figure(**each) for each in told["figures"]):
        size, unit = units[figure.what]
        cells = [
            f"{value / size:,.{1 if unit == 'GB' else 0}f} {unit}".strip()
            for value in (figure.planned, figure.measured)
        ]
        lines.append(f"| {figure.what} | {cells[0]} | {cells[1]} | {figure.planned / figure.measured:.2f} |")
    return "\n".join(
        [*lines, "", f"`check` itself took {told['check_s']:.1f} s (median), {told['rounds']} rounds planned."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/plan"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    words = [sys.executable, "-m", "posttrain"]
    rounds = [given.recipe, "--n", str(given.n), *(part for setting in given.settings for part in ("--set", setting))]
    check_s, plan = planned([*words, "check", *rounds], given.repeats)
    run = measured([*words, "round", *rounds, "--run", str(given.folder / "run")], given.folder / "run")
    figures = [asdict(Figure(name, plan[name], run[name])) for name in plan]
    told = {"rounds": given.n, "check_s": check_s, "figures": figures}
    print(table(told))
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
