"""Rounds of the quickstart: `posttrain round` against the same rounds glued together from TRL's own commands.

    python benchmarks/glued_trl.py --n 2 [--at-once 1] [--set KEY=VALUE] [--folder runs/glued-trl] [--json FILE]

The glued side is what users of TRL write (RLHFlow's loop is built like this): a process per step, data through JSONL,
`generate(num_return_sequences=K)`, `python -m trl.scripts.reward`, `sft` and `dpo` (what `trl sft` starts, without its
second start-up through accelerate). The same base model, prompt sets, counts, K and training fields as the recipe. It
is used as well as TRL's and transformers' documentation allows: prompts and texts sorted by length; batch size and
dtype by a search before (not timed); sampling, scoring and evaluation in one process a core; training in bf16 autocast
without activation checkpointing, with the attention that is fastest for it here, SFT in batches of like length, and no
checkpoints.

The sides take turns, `--at-once` rounds each. The first turn includes the evaluation of the base. A turn of ours is
one command, start-up included, so turns of one round cost ours its overlap between rounds; `--at-once 6 --n 6` is what
a user sees who asks for six rounds. CPU seconds are those of all descendants. Figures are of one run: repeat it.

What is not the same: the glued side has no filters but the best of K, holds back no pairs to measure its reward model,
draws other prompts and samples, promotes whatever has the higher pass@1 on dev, and cannot be resumed; the NLL in its
DPO is a mean over tokens, ours over answers. What either side learned is printed beside, so that neither is fast by
doing less. What this does not cover: GPUs, larger models (see sampling.py, scoring.py, training.py by size).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measuring import Cost, cost

from posttrain import load_recipe, open_run, shipped
from posttrain.config import PromptSet
from posttrain.pipeline.scored import BASE_TEMPERATURES
from posttrain.recipe.recipe import Recipe

STEPS = Path(__file__).with_suffix("")
OURS, GLUED = "posttrain", "TRL, glued"
SEARCH = {"sample": (64, 256, 1024), "score": (16, 64, 256)}
Row = dict[str, Any]


@dataclass
class Turn:
    """What one side took for some rounds; `steps` where it is a process each; held-out figures at the end."""

    side: str
    rounds: str
    wall_s: float
    cpu_s: float
    heldout: dict[str, float]
    steps: dict[str, Cost] = field(default_factory=dict)


class Ours:
    """The command itself."""

    def __init__(self, folder: Path, settings: Sequence[str]) -> None:
        self.run, self.log = folder / "ours", folder / "ours.log"
        self.settings = [part for setting in settings for part in ("--set", setting)]

    def play(self, first: int, last: int) -> Turn:
        command = [sys.executable, "-m", "posttrain", "round", "quickstart", "--n", str(last), "--run", str(self.run)]
        spent = cost([[*command, *self.settings]], self.log)
        heldout = [one.metrics("heldout")["heldout"] for one in open_run(self.run).rounds if one.promoted][-1]
        shown = {name: heldout[name]["value"] for name in ("pass@1", "greedy")}
        return Turn(OURS, name_of(first, last), spent.wall_s, spent.cpu_s, shown)


class Glued:
    """The user's own driver: what would be a shell script."""

    def __init__(self, folder: Path, recipe: Recipe, shards: int, threads: int, searched: int) -> None:
        self.folder, self.recipe, self.shards = folder / "glued", recipe, shards
        self.log = folder / "glued.log"
        self.folder.mkdir(parents=True)
        self.env = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.folder / "cache"),
        }
        self.spent: dict[str, Cost] = {}
        sets = recipe.prompts
        self.sets = {name: self._prompts(getattr(sets, name)) for name in ("train", "dev", "heldout")}
        random.Random(recipe.seed).shuffle(self.sets["train"])
        self.base = self.policy = self.previous = str(shipped.locate("data", recipe.model.path))
        self.reward_model = self.base
        self.best = -1.0
        self.heldout: dict[str, float] = {}
        self.fastest = {step: self._search(step, searched) for step in SEARCH}
        self.spent.clear()

    def play(self, first: int, last: int) -> Turn:
        if first == 1:
            self._evaluate(0, self.base, None, [t for t in BASE_TEMPERATURES if t != 1.0])
        for number in range(first, last + 1):
            self.play_round(number)
        spent, self.spent = self.spent, {}
        total = sum(spent.values(), Cost())
        return Turn(GLUED, name_of(first, last), total.wall_s, total.cpu_s, self.heldout, spent)

    def play_round(self, number: int) -> None:
        recipe, here = self.recipe, self.folder / f"round-{number}"
        here.mkdir()
        assert recipe.preferences and recipe.reward_model and recipe.sft and recipe.pairs and recipe.dpo
        prefer, pairs = recipe.preferences, recipe.pairs
        prompts = self._take(number, prefer.prompts, prefer.where)
        now = self._sample(here / "now", self.policy, prompts, prefer.k, number)
        before = self._sample(here / "before", self.previous, prompts, prefer.k, number)
        preferences = self.folder / "preferences"
        if recipe.reward_model.preferences == "latest":
            preferences = preferences / str(number)
        self._choose(
            *("preferences", "--first", *now, "--second", *before, "--margin", prefer.levels.better),
            *("--readers", shipped.locate("reward", "readers.py")),
            out=preferences / f"train-{number}.jsonl",
        )
        start = self.reward_model if recipe.reward_model.start == "previous" else self.base
        self.reward_model = self._train("reward", start, preferences, here / "reward", recipe.reward_model.trl)
        samples = self._sample(
            here / "samples", self.policy, self._take(number, recipe.samples.prompts), recipe.samples.k, number
        )
        self._choose("best", "--first", *self._score(samples), out=here / "best" / "train.jsonl")
        tuned = self._train("sft", self.policy, here / "best", here / "sft", recipe.sft.trl)
        sampled = self._sample(here / "pairs", tuned, self._take(number, pairs.prompts), pairs.k, number)
        scored = self._score(sampled)
        self._choose("pairs", "--first", *scored, "--margin", pairs.margin, out=here / "chosen" / "train.jsonl")
        with_nll = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, recipe.dpo.nll_weight]}
        policy = self._train("dpo", tuned, here / "chosen", here / "dpo", {**recipe.dpo.trl, **with_nll})
        self._evaluate(number, policy, self.reward_model, [])

    def _evaluate(self, number: int, policy: str, reward_model: str | None, temperatures: Sequence[float]) -> None:
        """Dev and held-out; the policy with the higher pass@1 on dev goes on."""
        section, here = self.recipe.evaluate, self.folder / f"evaluation-{number}"
        here.mkdir()
        sets = [write(here / f"{name}.jsonl", self.sets[name]) for name in ("dev", "heldout")]
        outs = [here / f"answers.{shard}.jsonl" for shard in range(self.shards)]
        command = [
            *("evaluate.py", "--model", policy, "--sets", *sets, "--k", section.k),
            *("--max-new-tokens", section.max_new_tokens, "--temperatures", *temperatures),
            *("--functions", *(shipped.locate("reward", name) for name in ("word-problems.py", "notes.py"))),
            *(("--reward-model", reward_model) if reward_model else ()),
            *("--score-batch", self.fastest["score"][0], "--score-dtype", self.fastest["score"][1]),
        ]
        self._run("evaluate", [[*command, *self._sharded(shard, outs[shard])] for shard in range(self.shards)])
        rows = [row for out in outs for row in read(out)]
        dev = figures(row for row in rows if row["set"] == "dev")
        if dev["pass@1"] > self.best:
            self.best, self.heldout = dev["pass@1"], figures(row for row in rows if row["set"] == "heldout")
            self.policy, self.previous = policy, self.policy

    def _sample(self, name: Path, model: str, prompts: list[Row], k: int, seed: int) -> list[Path]:
        source = write(name.with_suffix(".jsonl"), prompts)
        outs = [name.with_suffix(f".{shard}.jsonl") for shard in range(self.shards)]
        command = ["sample.py", "--model", model, "--prompts", source, "--k", k, "--seed", seed]
        command += ["--max-new-tokens", self.recipe.samples.max_new_tokens]
        self._run(
            f"sample {name.stem}", [[*command, *self._sharded(shard, outs[shard])] for shard in range(self.shards)]
        )
        return outs

    def _sharded(self, shard: int, out: Path) -> list[Any]:
        rows, dtype = self.fastest["sample"]
        return ["--rows", rows, "--dtype", dtype, "--shard", shard, "--shards", self.shards, "--out", out]

    def _score(self, samples: list[Path]) -> list[Path]:
        batch, dtype = self.fastest["score"]
        outs = [path.with_suffix(".scored.jsonl") for path in samples]
        command = ["score.py", "--reward-model", self.reward_model, "--batch", batch, "--dtype", dtype]
        command += ["--functions", shipped.locate("reward", "word-problems.py")]
        sides = zip(samples, outs, strict=True)
        self._run(
            f"score {samples[0].name.split('.')[0]}",
            [[*command, "--samples", path, "--out", out] for path, out in sides],
        )
        return outs

    def _choose(self, what: str, *options: Any, out: Path) -> None:
        self._run(f"choose {what}", [["choose.py", what, *options, "--out", out]])

    def _train(self, kind: str, model: str, data: Path, out: Path, fields: Mapping[str, Any]) -> str:
        """`python -m trl.scripts.KIND` on a folder of JSONL, with the recipe's own fields."""
        # On CPU, "eager" is the fastest attention to train with in bf16: the backward of its flash attention is slow.
        faster: dict[str, Any] = {"use_cpu": True, "bf16": True}
        faster |= {"activation_checkpointing": False, "attn_implementation": "eager"}
        if kind == "sft":  # of TRL's trainers the one that can
            faster["train_sampling_strategy"] = "group_by_length"
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
        named = {"model_name_or_path": model, "dataset_name": data, "output_dir": out, "dtype": "float32"}
        command: list[Any] = ["-m", f"trl.scripts.{kind}"]
        for name, value in {**fields, **faster, **quiet, **named}.items():
            command += [f"--{name}", *(value if isinstance(value, list) else [value])]
        self._run(f"trl {kind}", [command])
        return str(out)

    def _search(self, step: str, searched: int) -> tuple[int, str]:
        """Rows at once and dtype with which this step takes least CPU time on so many prompts, start-up aside."""
        prompts = write(self.folder / "search.jsonl", self.sets["train"][:searched])
        cpu_s = {}
        for rows in SEARCH[step]:
            for dtype in ("float32", "bfloat16"):
                command: list[Any] = [f"{step}.py", "--dtype", dtype]
                if step == "sample":
                    command += ["--model", self.base, "--prompts", prompts, "--k", 8, "--rows", rows]
                    command += ["--out", self.folder / "searched.jsonl"]
                else:
                    command += ["--reward-model", self.base, "--samples", self.folder / "searched.jsonl"]
                    command += ["--batch", rows, "--out", self.folder / "search-scored.jsonl"]
                self._run("search", [command])
                told = [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
                cpu_s[rows, dtype] = json.loads(told[-1])["cpu_s"]
        print(
            f"{step}, CPU s:",
            {f"{rows} {dtype}": round(value, 2) for (rows, dtype), value in cpu_s.items()},
            flush=True,
        )
        return min(cpu_s, key=cpu_s.__getitem__)

    def _run(self, step: str, commands: Sequence[Sequence[Any]]) -> None:
        whole = []
        for command in commands:
            first, *rest = command
            whole.append([sys.executable, first if first == "-m" else str(STEPS / first), *map(str, rest)])
        self.spent[step] = self.spent.get(step, Cost()) + cost(whole, self.log, self.env)

    def _take(self, number: int, count: int | None, where: Mapping[str, Any] | None = None) -> list[Row]:
        """The round's slice of the shuffled training prompts, or of those with these values in their columns."""
        wanted = (where or {}).items()
        train = [row for row in self.sets["train"] if all(row.get(name) == value for name, value in wanted)]
        count = min(count or len(train), len(train))
        return [train[at % len(train)] for at in range(count * (number - 1), count * number)]

    def _prompts(self, prompt_set: PromptSet) -> list[Row]:
        bounds = (int(bound) if bound else None for bound in (prompt_set.rows or ":").split(":"))
        return read(shipped.locate("data", prompt_set.path or ""))[slice(*bounds)]


def figures(rows: Iterable[Row]) -> dict[str, float]:
    """pass@1 and greedy accuracy on prompts with an answer."""
    right: dict[str, list[float]] = {"sampled": [], "greedy": []}
    for row in rows:
        if row["setting"] in right and row["answer"] is not None:
            right[row["setting"]] += row["word-problems"]
    shares = {name: sum(values) / max(len(values), 1) for name, values in right.items()}
    return {"pass@1": shares["sampled"], "greedy": shares["greedy"]}


def name_of(first: int, last: int) -> str:
    return f"{first - (first == 1)}–{last}" if first == 1 or first < last else str(first)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(turns: Sequence[Turn]) -> str:
    """Markdown: each turn, then the totals; the ratio is the glued side's time over ours."""
    lines = [
        "| rounds | TRL, glued: wall s | CPU s | posttrain: wall s | CPU s | × wall | × CPU |",
        "| --- " * 7 + "|",
    ]

    def line(label: str, chosen: Sequence[Turn]) -> str:
        sides = {
            side: sum((Cost(one.wall_s, one.cpu_s) for one in chosen if one.side == side), Cost())
            for side in (GLUED, OURS)
        }
        glued, ours = sides[GLUED], sides[OURS]
        return (
            f"| {label} | {glued.wall_s:.1f} | {glued.cpu_s:.1f} | {ours.wall_s:.1f} | {ours.cpu_s:.1f} | "
            f"{glued.wall_s / ours.wall_s:.2f} | {glued.cpu_s / ours.cpu_s:.2f} |"
        )

    for rounds in dict.fromkeys(turn.rounds for turn in turns):
        lines.append(line(rounds, [turn for turn in turns if turn.rounds == rounds]))
    lines.append(line("all", turns))
    last = {turn.side: turn for turn in turns}
    lines += ["", "| held-out, promoted policy | pass@1 | greedy |", "| --- " * 3 + "|"]
    lines += [f"| {side} | {one.heldout['pass@1']:.3f} | {one.heldout['greedy']:.3f} |" for side, one in last.items()]
    steps: dict[str, Cost] = {}
    for turn in turns:
        for name, spent in turn.steps.items():
            steps[name] = steps.get(name, Cost()) + spent
    lines += ["", "| step of the glued side, all rounds | wall s | CPU s |", "| --- " * 3 + "|"]
    lines += [f"| {name} | {spent.wall_s:.1f} | {spent.cpu_s:.1f} |" for name, spent in steps.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2, help="rounds of each side")
    parser.add_argument("--at-once", type=int, default=1, help="rounds before the other side's turn")
    parser.add_argument("--shards", type=int, default=os.cpu_count() or 1, help="processes that sample, glued side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process, glued side")
    parser.add_argument("--searched", type=int, default=256, help="prompts of the search for rows and dtype")
    parser.add_argument("--folder", type=Path, default=Path("runs/glued-trl"), help="must not be there yet")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if folder.exists():
        parser.error(f"{given.folder} is there already; remove it, or name another --folder")
    folder.mkdir(parents=True)
    sides = [
        Glued(folder, load_recipe("quickstart", given.settings), given.shards, given.threads, given.searched),
        Ours(folder, given.settings),
    ]
    turns = []
    for first in range(1, given.n + 1, given.at_once):
        for side in sides:
            turns.append(side.play(first, min(first + given.at_once - 1, given.n)))
            print(f"{turns[-1].side}, rounds {turns[-1].rounds}: {turns[-1].wall_s:.1f} s", flush=True)
    print(table(turns))
    if given.json:
        given.json.write_text(json.dumps([asdict(turn) for turn in turns], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
