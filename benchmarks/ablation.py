"""Do the parts of the loop earn their place? The quickstart against itself with one part changed, over seeds.

    python benchmarks/ablation.py                     # all arms, three seeds; goes on where it was stopped
    python benchmarks/ablation.py --seeds 0 --short 1 # a quick look
    python benchmarks/ablation.py --study mechanisms --n 3   # the choices of Llama 3 that the recipe makes by a key
    python benchmarks/ablation.py --study filters --n 3   # with and without filters, on good samples and poisoned ones
    python benchmarks/ablation.py --arms "without DPO"     # the loop and this one
    python benchmarks/ablation.py --table             # only the table of what is there

The loop runs for `--n` rounds, the arms for `--short`, and are compared with the loop at that round. The arms of one
seed share a run folder, so what they have in common is done once. Figures are on held-out prompts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import poisoning

LOOP = "the loop"
# Of `filters` these stay where the quality filters are left out: the first keeps evaluation prompts out of training,
# the second is the selection itself.
_STAYS = "{use: overlap, max_share: 0.99}, {use: best-of-k, threshold: 0.5}"
NO_FILTERS = [f"filters=[{_STAYS}]"]
ALL_RULES = [
    "filters=[{use: format}, {use: residue}, {use: loop}, {use: repetition}, {use: truncated, prose: true}, "
    "{use: emphasis}, {use: language}, {use: exact-duplicates}, {use: near-duplicates, of: answer}, " + _STAYS + "]"
]
POISONED = "poisoned, "  # such arms have a run folder of their own, where poisoning.py plays the rounds
STUDIES = {
    "parts": {
        LOOP: [],
        "without DPO": ["dpo=null"],
        "without the reward model": ["reward_model=null"],
        "a random candidate instead of the best": ["filters.9.choose=random", "filters.9.threshold=null"],
        "without the quality filters": NO_FILTERS,
    },
    "mechanisms": {
        LOOP: [],
        "formatting tokens in DPO's loss": ["dpo.mask_format=false"],
        "no NLL on chosen": ["dpo.nll_weight=0"],
        "pairs from samples": ["dpo.pairs_from=samples", "dpo.margin=0.3", "pairs=null"],
        "two SFT and two DPO variants, averaged": [
            "sft.variants=[{seed: 0}, {seed: 1}]",
            "dpo.variants=[{seed: 0}, {seed: 1}]",
        ],
        "reward model from the base, on all rounds' pairs": ["reward_model.start=base", "reward_model.preferences=all"],
        "reference: the base": ["dpo.reference=initial"],
        "reference: the last promoted policy": ["dpo.reference=previous"],
        "pairs and preferences": ["dpo.pairs_from=[pairs, preferences]"],
        "pairs and all rounds' preferences": ["dpo.pairs_from=[pairs, preferences]", "dpo.preferences=all"],
        "NLL weight 0.2": ["dpo.nll_weight=0.2"],
        "pairs from preferences": ["dpo.pairs_from=preferences", "pairs=null"],
        "reference: the average of all promoted": ["dpo.reference=averaged"],
        "averaged with the policy promoted before": ["average_rounds=2"],
    },
    "filters": {  # the loop has the recipe's own: the rules but language, and exact duplicates
        LOOP: [],
        "no quality filters": NO_FILTERS,
        "poisoned, no quality filters": NO_FILTERS,
        "poisoned, the recipe's filters": [],
        "poisoned, all rules and near-duplicates": ALL_RULES,
        "all rules and near-duplicates": ALL_RULES,
    },
}
COLUMNS = {
    "pass@1": lambda heldout: heldout["pass@1"],
    "greedy": lambda heldout: heldout["greedy"],
    "notes well written": lambda heldout: heldout["measure"]["notes"]["sampled"],
}

PICKS = ("sampled", "reward_model_pick")


def figures_file(folder: Path, arm: str, seed: int, args: argparse.Namespace) -> Path:
    """Named by all that decides what is in it."""
    changes = hashlib.sha256(json.dumps([args.extra, STUDIES[args.study][arm]]).encode()).hexdigest()[:8]
    rounds = args.n if arm == LOOP else args.short
    return folder / f"{arm.replace(' ', '-')}.seed-{seed}.rounds-{rounds}.{changes}.json"


def run_arm(folder: Path, arm: str, seed: int, args: argparse.Namespace) -> None:
    """One arm of one seed, in the run folder of that seed."""
    n = args.n if arm == LOOP else args.short
    target = figures_file(folder, arm, seed, args)
    if target.exists():
        return
    words, run = ["-m", "posttrain", "round", "quickstart"], folder / f"seed-{seed}"
    if arm.startswith(POISONED):
        words, run = [str(Path(__file__).with_name("poisoning.py"))], folder / f"seed-{seed}.poisoned"
    settings = [f"seed={seed}", "compute.workers=1", *args.extra, *STUDIES[args.study][arm]]
    command = [sys.executable, *words, "--n", str(n), "--run", str(run)]
    for setting in settings:
        command += ["--set", setting]
    with (folder / f"seed-{seed}.log").open("a", encoding="utf-8") as log:
        print(f"\n=== {arm}", file=log, flush=True)
        subprocess.run(command, check=True, stdout=log, stderr=log)
    status = subprocess.run(
        [sys.executable, "-m", "posttrain", "status", str(run), "--json"], check=True, capture_output=True, text=True
    )
    told = json.loads(status.stdout)
    if arm.startswith(POISONED):
        told["junk"] = poisoning.found(run)
    target.write_text(json.dumps(told, indent=1), encoding="utf-8")
    print(f"{arm}, seed {seed}: done", flush=True)


def run_all(folder: Path, args: argparse.Namespace) -> None:
    """Arm after arm, each for all seeds, so that what is there is always comparable; one at a time in a run folder."""
    busy = {seed: threading.Lock() for seed in args.seeds}

    def run(task: tuple[str, int]) -> None:
        with busy[task[1]]:
            run_arm(folder, *task, args)

    arms = [arm for arm in STUDIES[args.study] if arm == LOOP or not args.arms or arm in args.arms]
    tasks = [(arm, seed) for arm in arms for seed in args.seeds]
    with ThreadPoolExecutor(args.side_by_side) as pool:
        list(pool.map(run, tasks))


def at_round(status: dict[str, Any], number: int) -> dict[str, Any]:
    """Held-out figures of the policy that is promoted after this round."""
    rounds = [entry for entry in status["rounds"] if entry["promoted"] and entry["round"] <= number]
    return rounds[-1]["evaluate"]["heldout"]


def pooled(figures: list[dict[str, Any]]) -> str:
    """Mean over seeds with its 95 % interval: that of the prompts within a seed and that of the seeds, added."""
    values = [figure["value"] for figure in figures]
    mean = sum(values) / len(values)
    within = sum(((figure["ci95"][1] - figure["ci95"][0]) / 3.92) ** 2 for figure in figures) / len(figures) ** 2
    spread = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1) / len(values)
    half = 1.96 * math.sqrt(within + spread)
    return f"{mean:.3f} ± {half:.3f}"


def table(folder: Path, args: argparse.Namespace) -> str:
    """The figures at the round up to which each arm went, and those of the base and of the whole loop."""
    rows: dict[str, list[dict[str, Any]]] = {}
    promoted: dict[str, list[str]] = {}

    def add(label: str, status: dict[str, Any], number: int) -> None:
        rows.setdefault(label, []).append(at_round(status, number))
        of = [entry for entry in status["rounds"] if 1 <= entry["round"] <= number]
        promoted.setdefault(label, []).append(f"{sum(bool(entry['promoted']) for entry in of)} of {len(of)}")

    for arm in STUDIES[args.study]:
        for seed in args.seeds:
            path = figures_file(folder, arm, seed, args)
            if not path.exists():
                continue
            status = json.loads(path.read_text(encoding="utf-8"))
            if arm == LOOP:
                add("the base", status, 0)
                if args.n != args.short:
                    add(f"{LOOP}, {args.n} rounds", status, args.n)
            add(f"{arm}, {args.short} rounds", status, args.short)
    lines = [f"| held-out | {' | '.join(COLUMNS)} | rounds promoted, by seed |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for label, found in rows.items():
        cells = [pooled([column(heldout) for heldout in found]) for column in COLUMNS.values()]
        lines.append(f"| {label} | {' | '.join(cells)} | {', '.join(promoted[label])} |")
    return "\n".join([*lines, "", *(junk(folder, args) if args.study == "filters" else picks(folder, args))])


def read_figures(folder: Path, arm: str, args: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """By seed, what is there of an arm."""
    paths = {seed: figures_file(folder, arm, seed, args) for seed in args.seeds}
    return {seed: json.loads(path.read_text(encoding="utf-8")) for seed, path in paths.items() if path.exists()}


def junk(folder: Path, args: argparse.Namespace) -> list[str]:
    """Of the poisoned arms: how much of what SFT read was junk, and which share of the loss there was, by seed.

    The loss is what the loop has and the poisoned loop without filters has not.
    """
    lines = [
        f"| arm | rows that SFT read | junk among them | {' | '.join(f'{name}: loss recovered' for name in COLUMNS)} |",
        "| --- " * (len(COLUMNS) + 3) + "|",
    ]
    loop, harmed = read_figures(folder, LOOP, args), read_figures(folder, f"{POISONED}no quality filters", args)
    for arm in (name for name in STUDIES[args.study] if name.startswith(POISONED)):
        figures = read_figures(folder, arm, args)
        read = {seed: {kind: by.get("kept", 0) for kind, by in one["junk"].items()} for seed, one in figures.items()}
        rows, good = (sum(sum(of.values()) for of in read.values()), sum(of["none"] for of in read.values()))
        cells = []
        for column in COLUMNS.values():
            shares = []
            for seed in sorted(loop.keys() & harmed.keys() & figures.keys()):
                best, worst, here = (
                    column(at_round(one[seed], args.short))["value"] for one in (loop, harmed, figures)
                )
                shares.append(f"{(here - worst) / (best - worst):.2f}" if best > worst else "no loss")
            cells.append(", ".join(shares))
        if rows:
            lines.append(f"| {arm} | {rows:,} | {1 - good / rows:.1%} | {' | '.join(cells)} |")
    return [*lines, "", *_by_kind(folder, args)]


def _by_kind(folder: Path, args: argparse.Namespace) -> list[str]:
    """Of each kind of junk, which share the filters found, best-of-k and what SFT read not counted."""
    arms = [name for name in STUDIES[args.study] if name.startswith(POISONED)]
    found: dict[str, dict[str, Counter[str]]] = {arm: {} for arm in arms}
    for arm in arms:
        for figures in read_figures(folder, arm, args).values():
            for kind, by in figures["junk"].items():
                found[arm].setdefault(kind, Counter()).update(by)
    kinds = sorted({kind for by in found.values() for kind in by})
    lines = [f"| dropped by the filters | {' | '.join(arms)} |", "| --- " * (len(arms) + 1) + "|"]
    for kind in kinds:
        cells = []
        for arm in arms:
            by = found[arm].get(kind, Counter())
            dropped = sum(number for name, number in by.items() if name not in ("kept", "best-of-k"))
            cells.append(f"{dropped:,} of {by.total():,}")
        lines.append(f"| {'good samples' if kind == 'none' else kind} | {' | '.join(cells)} |")
    return lines


def picks(folder: Path, args: argparse.Namespace) -> list[str]:
    """On prompts without an answer: the reward model's pick of K beside the average candidate, first and last round."""
    lines = [
        "| notes well written, held-out | seed | average of K | the reward model's pick of K |",
        "| --- " * 4 + "|",
    ]
    found: dict[int, list[dict[str, Any]]] = {1: [], args.n: []}
    for seed in args.seeds:
        path = figures_file(folder, LOOP, seed, args)
        if not path.exists():
            continue
        rounds = json.loads(path.read_text(encoding="utf-8"))["rounds"]
        for number in found:
            measure = rounds[number]["evaluate"]["heldout"]["measure"]["notes"]
            found[number].append(measure)
            cells = [_with_interval(measure[name]) for name in PICKS]
            lines.append(f"| round {number} | {seed} | {' | '.join(cells)} |")
    for number, measures in found.items():
        cells = [pooled([measure[name] for measure in measures]) for name in PICKS]
        lines.append(f"| round {number} | all | {' | '.join(cells)} |")
    return lines


def _with_interval(figure: dict[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{figure['value']:.3f} [{low:.3f}, {min(high, 1.0):.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--study", choices=list(STUDIES), default="parts")
    parser.add_argument("--arms", nargs="+", default=[], help="beside the loop; default: all of the study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=6, help="rounds of the loop")
    parser.add_argument("--short", type=int, default=3, help="rounds of the other arms")
    parser.add_argument("--side-by-side", type=int, default=2, help="seeds at the same time, one process each")
    parser.add_argument("--set", dest="extra", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--table", action="store_true", help="print the table of what is there and run nothing")
    args = parser.parse_args()
    if unknown := [arm for arm in args.arms if arm not in STUDIES[args.study]]:
        parser.error(f"{args.study} has no {unknown[0]!r}; it has {', '.join(map(repr, STUDIES[args.study]))}")
    args.folder.mkdir(parents=True, exist_ok=True)
    if not args.table:
        run_all(args.folder, args)
    print(table(args.folder, args))


if __name__ == "__main__":
    main()
