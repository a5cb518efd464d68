"""How well the accuracy of later rounds and of twice the prompts is forecast from two rounds of half the prompts.

    python benchmarks/forecast.py --seeds 0 1 2 --recipes quickstart without-dpo --folder runs/forecast [--json FILE]

For each recipe and seed a run with half the prompts and one with all, of `--n` rounds each; a run that is there goes
on. The forecast is made from rounds 0 to 2 of the run with half the prompts alone, for its later rounds and for the
same rounds of the other run. Beside it: no change since round 2, and a straight line through rounds 1 and 2 over the
logarithm of the tokens sampled to learn from. Errors are mean absolute ones, of held-out pass@1 in percentage points.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from posttrain.evaluation.forecast import forecast
from posttrain.report import forecasts
from posttrain.report.reading import RunView, open_run

# The changes that make each recipe, and those that halve its prompts.
HALF_SAMPLES, HALF_PAIRS = ("samples.prompts=450",), ("pairs.prompts=1200",)
HALF_PREFERENCES = ("preferences.prompts=320", "reward_model.max_steps=20")
RECIPES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "quickstart": ((), (*HALF_SAMPLES, *HALF_PAIRS, *HALF_PREFERENCES)),
    "without-dpo": (("dpo=null", "pairs=null"), (*HALF_SAMPLES, *HALF_PREFERENCES)),
    "without-reward-model": (
        ("reward_model=null", "preferences=null", "reward=[{use: word-problems.py, for: scores}]"),
        (*HALF_SAMPLES, *HALF_PAIRS),
    ),
}
FIRST = 2  # rounds that are known


@dataclass(frozen=True)
class Case:
    """One later round of one run: what was forecast, and what came."""

    recipe: str
    seed: int
    prompts: str
    round: int
    value: float
    low: float
    high: float
    came: float
    unchanged: float
    line: float

    @property
    def inside(self) -> bool:
        return self.low <= self.came <= self.high


def run(folder: Path, recipe: str, seed: int, n: int, half: bool, own: Sequence[str]) -> RunView:
    changes, fewer = RECIPES[recipe]
    settings = [f"seed={seed}", *changes, *own, *((*fewer, f"evaluate.forecast.rounds={FIRST}") if half else ())]
    target = folder / f"{recipe}-{'half' if half else 'full'}-{seed}"
    words = [sys.executable, "-m", "posttrain", "round", "quickstart", "--n", str(n), "--run", str(target)]
    log = target.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        command = [*words, *(word for one in settings for word in ("--set", one))]
        if subprocess.run(command, stdout=file, stderr=file, check=False).returncode:
            raise SystemExit(f"{target}: failed, see the end of {log}")
    return open_run(target)


def cases(recipe: str, seed: int, half: RunView, full: RunView) -> list[Case]:
    points = forecasts.points(half)
    found = []
    for prompts, view in (("half", half), ("full", full)):
        spent, came = forecasts.spent(view), {one.number: forecasts.heldout_accuracy(one) for one in view.rounds}
        later = [number for number in range(FIRST + 1, len(spent)) if came[number] is not None]
        expected = forecast([points], [spent[number] for number in later], heldout_answers=points[-1].heldout_answers)
        assert expected, "the first rounds were not better than the base"
        first, second = points[1:]
        tokens, known = forecasts.spent(view, "tokens"), forecasts.spent(half, "tokens")
        slope = (second.accuracy - first.accuracy) / math.log(known[2] / known[1])
        for number, figure in zip(later, expected, strict=True):
            line = second.accuracy + slope * math.log(tokens[number] / known[2])
            low, high = figure["ci95"]
            found.append(
                Case(
                    recipe,
                    seed,
                    prompts,
                    number,
                    figure["value"],
                    low,
                    high,
                    came[number] or 0.0,
                    second.accuracy,
                    line,
                )
            )
    return found


def summary(found: Sequence[Case]) -> dict[str, float]:
    count = len(found)

    def error(name: str) -> float:
        return 100 * sum(abs(getattr(one, name) - one.came) for one in found) / count

    return {
        "forecasts": count,
        "inside": sum(one.inside for one in found),
        "mean_width": 100 * sum(one.high - one.low for one in found) / count,
        "error": error("value"),
        "error_no_change": error("unchanged"),
        "error_line": error("line"),
    }


def table(found: Sequence[Case]) -> str:
    lines = ["| recipe | forecast of | inside | mean width | error | no change | line |", "| --- |" + " --- |" * 6]
    kinds = list(dict.fromkeys((one.recipe, one.prompts) for one in found))
    for recipe, prompts in [*kinds, ("all", "")]:
        part = [one for one in found if recipe == "all" or (one.recipe, one.prompts) == (recipe, prompts)]
        of = summary(part)
        said = f"{of['mean_width']:.1f} | {of['error']:.1f} | {of['error_no_change']:.1f} | {of['error_line']:.1f}"
        lines.append(f"| {recipe} | {prompts} | {of['inside']} of {of['forecasts']} | {said} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: list[Case] = []
    for recipe in options.recipes:
        for seed in options.seeds:
            half, full = (run(options.folder, recipe, seed, options.n, few, options.set) for few in (True, False))
            found += cases(recipe, seed, half, full)
            print(table(found), flush=True)
    result = {**summary(found), "cases": [asdict(one) for one in found]}
    print(json.dumps({name: value for name, value in result.items() if name != "cases"}))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
