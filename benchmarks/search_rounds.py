"""What a search is worth to the loop: rounds with it against rounds with plain sampling of equal cost.

    python benchmarks/search_rounds.py [--seeds 0 1 2] [--n 3] [--folder runs/search-rounds]    # goes on where it was
    python benchmarks/search_rounds.py --table                                                  # of what is there

recipes/reasoning.yaml in three arms: `search`; `more samples`, without a search and with as many samples of each prompt
as cost about the same tokens; `neither`. Judged on the held-out problems of 5 and 6 steps, which no arm trains on:
pass@1 of 4 samples at temperature 1, and greedy. Differences are paired by problem, means over the seeds; intervals of
95 % over problems. `tokens`: sampled for what SFT and DPO learn from, search included, in all rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.data.tables import GREEDY, SAMPLED
from posttrain.evaluation import statistics
from posttrain.report.reading import open_run

ROOT = Path(__file__).parent.parent
ARMS = {
    "search": [],
    "more samples": ["search=null", "dpo.pairs_from=pairs", "samples.k=11"],
    "neither": ["search=null", "dpo.pairs_from=pairs"],
}
LEARNED_FROM = ("answers-samples", "search", "answers-pairs", "step-labels")


def play(arm: str, seed: int, given: argparse.Namespace) -> Path:
    run = given.folder / f"{arm.replace(' ', '-')}-{seed}"
    if not given.table:
        words = [word for change in [f"seed={seed}", *ARMS[arm], *given.extra] for word in ("--set", change)]
        call = [
            sys.executable,
            "-m",
            "posttrain",
            "round",
            given.recipe,
            "--n",
            str(given.n),
            "--run",
            str(run),
            *words,
        ]
        subprocess.run(call, check=True, stdout=sys.stderr)
    return run


def long_ones(run: Path, number: int) -> dict[str, tuple[float, float]]:
    """Of each held-out problem of 5 and 6 steps the share of right samples, and whether the greedy answer is right."""
    rows = pq.read_table(run / f"round-{number}" / "heldout" / "heldout.parquet").to_pylist()
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        if row["tag"] in (GREEDY, SAMPLED) and len(json.loads(row["columns"])["steps"].split()) >= 5:
            (score,) = json.loads(row["rewards"]).values()
            found.setdefault(row["prompt_id"], ([], []))[row["tag"] == GREEDY].append(score)
    return {one: (sum(some) / len(some), greedy[0]) for one, (some, greedy) in found.items()}


def tokens(run: Path, n: int) -> int:
    total = 0
    for number in range(1, n + 1):
        for name in LEARNED_FROM:
            file = run / f"round-{number}" / name / "artifact.json"
            total += json.loads(file.read_text("utf-8"))["metrics"]["tokens"] if file.is_file() else 0
    return total


def table(runs: dict[str, Sequence[Path]], n: int) -> str:
    lines = [
        "| round | arm | pass@1, 5–6 steps | search − this | greedy | search − this | tokens | seeds |",
        "| --- " * 8 + "|",
    ]
    for number in range(n + 1):
        figures: dict[str, list[dict[str, tuple[float, float]]]] = {
            arm: [long_ones(run, number) for run in some] for arm, some in runs.items()
        }
        order = sorted(figures["search"][0])
        means = {
            arm: [[sum(one[name][at] for one in some) / len(some) for name in order] for at in (0, 1)]
            for arm, some in figures.items()
        }
        for arm, (sampled, greedy) in means.items() if number else [("search", means["search"])]:
            cells: list[Any] = [number, arm if number else "base"]
            for at, values in enumerate((sampled, greedy)):
                cells.append(f"{sum(values) / len(values):.3f}")
                other = statistics.paired_difference(means["search"][at], values) if arm != "search" else None
                cells.append(statistics.in_words(other))
            cells += [f"{sum(tokens(run, number) for run in runs[arm]) / len(runs[arm]):,.0f}", len(runs[arm])]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="reasoning")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "search-rounds")
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="extra", action="append", default=[], help="as of `posttrain round`")
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    given = parser.parse_args()
    runs: dict[str, list[Path]] = {arm: [] for arm in ARMS}
    for seed in given.seeds:
        for arm in ARMS:
            runs[arm].append(play(arm, seed, given))
        if not given.table or seed == given.seeds[-1]:
            print(table({arm: [run for run in some if open_run(run).rounds] for arm, some in runs.items()}, given.n))


if __name__ == "__main__":
    main()
