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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import finished, is_long, judged, manifests, over_seeds, play

from posttrain.evaluation import statistics

ROOT = Path(__file__).parent.parent
ARMS = {
    "search": [],
    "more samples": ["search=null", "dpo.pairs_from=pairs", "samples.k=11"],
    "neither": ["search=null", "dpo.pairs_from=pairs"],
}
LEARNED_FROM = ("answers-samples", "search", "answers-pairs", "step-labels")


def tokens(run: Path, n: int) -> int:
    return sum(made["metrics"]["tokens"] for made in manifests(run, n, LEARNED_FROM))


def table(runs: dict[str, Sequence[Path]], n: int) -> str:
    lines = [
        "| round | arm | pass@1, 5–6 steps | search − this | greedy | search − this | tokens | seeds |",
        "| --- " * 8 + "|",
    ]
    for number in range(n + 1):
        means = {arm: over_seeds([judged(run, number, is_long) for run in some]) for arm, some in runs.items()}
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
            run = given.folder / f"{arm.replace(' ', '-')}-{seed}"
            changes = [f"seed={seed}", *ARMS[arm], *given.extra]
            runs[arm].append(run if given.table else play(given.recipe, given.n, run, changes))
        if not given.table or seed == given.seeds[-1]:
            print(table({arm: [run for run in some if finished(run, given.n)] for arm, some in runs.items()}, given.n))


if __name__ == "__main__":
    main()
