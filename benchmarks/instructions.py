"""Does the loop make a real pretrained model better? recipes/instructions.yaml, judged by IFEval, which it never sees.

    python benchmarks/instructions.py MODEL --ifeval input_data.jsonl --texts test.jsonl HumanEval.jsonl
    python benchmarks/instructions.py MODEL --ifeval … --texts … --parts         # and what the parts are worth
    python benchmarks/instructions.py MODEL --ifeval … --texts … --table         # only the tables of what is there

MODEL is a folder; input_data.jsonl is IFEval's own file; the texts are GSM8K's and HumanEval's own files. It goes on
where it was stopped; what is in --results is not made again. After each round the promoted policy answers IFEval
greedily; an answer counts when reward/instructions.py says that it follows all constraints (IFEval's prompt-level
strict accuracy). Intervals are of the prompts: 95 %, paired with the base. The log-likelihood is per token of whole
texts, in float32. Arms of --parts have two rounds and half the prompts, and one seed; the last round is judged, by
IFEval alone.
"""

from __future__ import annotations

import argparse
import json
import math
import runpy
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluation import statistics
from posttrain.evaluation.diversity import distinct, words_of
from posttrain.filters.contamination import overlap
from posttrain.report.reading import open_run

ROOT = Path(__file__).parent.parent
LOOP = "the loop"
HALF = ["samples.prompts=160", "preferences.prompts=32"]
CHECKS = [  # the recipe's rewards without its last, the reward model
    {"use": "instructions.py", "function": "all_followed", "for": "scores"},
    {"use": "instructions.py", "function": "share_followed", "weight": 0.5},
    {"use": "instructions.py", "function": "substance", "weight": 0.1},
]
PARTS = {
    LOOP: [],
    "without DPO": ["dpo=null"],
    "without the reward model": ["reward_model=null", "preferences=null", f"reward={json.dumps(CHECKS)}"],
    "a random candidate": ["filters.7.choose=random"],
}
NEW_TOKENS = 512


def command(*words: str, given: argparse.Namespace) -> None:
    """Runs `posttrain`."""
    with given.log.open("a", encoding="utf-8") as file:
        print(f"\n=== posttrain {' '.join(words)}", file=file, flush=True)
        subprocess.run([sys.executable, "-m", "posttrain", *words], check=True, stdout=file, stderr=file)


class Checked:
    """IFEval's constraints, by our registry; `untrained`: the kinds that are in no training prompt."""

    def __init__(self, ifeval: Path) -> None:
        self.all_followed = runpy.run_path(str(ROOT / "reward" / "instructions.py"))["all_followed"]
        self.untrained = set(runpy.run_path(str(ROOT / "data" / "instructions.py"))["HELD_OUT"])
        rows = map(json.loads, ifeval.read_text("utf-8").splitlines())
        self.kinds: dict[str, list[str]] = {str(row["key"]): row["instruction_id_list"] for row in rows}

    def followed(self, answer: Mapping[str, Any]) -> list[int]:
        """Whether each constraint of the prompt is followed, in its order."""
        columns = answer["columns"]
        constraints = zip(columns["instruction_id_list"], columns["kwargs"], strict=True)
        of_row = {"prompts": [answer["prompt"]], "completions": [answer["completion"]]}
        return [
            int(self.all_followed(**of_row, instruction_id_list=[[kind]], kwargs=[[given]])[0])
            for kind, given in constraints
        ]

    def share(self, found: Mapping[str, Any], trained: bool) -> float:
        """Of the constraints of kinds that are trained, or not, those that are followed."""
        return mean(
            ok
            for key, verdicts in found["followed"].items()
            for kind, ok in zip(self.kinds[key], verdicts, strict=True)
            if (kind not in self.untrained) == trained
        )


def judged(model: str, given: argparse.Namespace, name: str, texts: Sequence[Path]) -> dict[str, Any]:
    """IFEval and the texts of one model; a second call reads what the first one wrote. The answers themselves stay in
    the folder of the runs."""
    target = given.results / f"{name}.json"
    if target.is_file():
        return json.loads(target.read_text("utf-8"))
    answers = given.folder / f"{name}.answers.jsonl"
    if not answers.is_file():
        greedy = ["--k", "1", "--temperature", "0", "--max-new-tokens", str(given.new)]
        command("sample", model, "--prompts", str(given.ifeval), *greedy, "--out", str(answers), given=given)
    check = Checked(given.ifeval)
    rows = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    found = {
        "followed": {str(row["columns"]["key"]): check.followed(row) for row in rows},
        "tokens": mean(row["n_tokens"] for row in rows),
        "unfinished": mean(row["finish"] != "stop" for row in rows),
        "distinct-2": distinct([words_of(row["completion"][-1]["content"]) for row in rows], 2) or 0,
        "texts": {path.name: mean(log_likelihood(model, path, given.rows)) for path in texts},
    }
    target.write_text(json.dumps(found) + "\n", "utf-8")
    return found


def log_likelihood(model: str, texts: Path, rows: int) -> list[float]:
    """Of each text (at most 1,024 tokens), per token after the first."""
    from transformers import AutoTokenizer

    from posttrain.engines.likelihood import Likelihoods
    from posttrain.engines.load import load

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    lines = texts.read_text("utf-8").splitlines()[:rows]
    ids = [tokenizer.encode(text_of(json.loads(line)))[:1024] for line in lines]
    found = Likelihoods(load(model, "float32", "cpu")).of([one[:1] for one in ids], [[one[1:]] for one in ids])
    return [whole.total / (len(one) - 1) for one, (whole,) in zip(ids, found, strict=True)]


def text_of(row: Mapping[str, str]) -> str:
    """GSM8K's question and solution, HumanEval's function with its body."""
    return f"{row['question']}\n{row['answer']}" if "question" in row else row["prompt"] + row["canonical_solution"]


def play(
    arm: str, seed: int, settings: Sequence[str], n: int, run: Path, given: argparse.Namespace, last: bool = False
) -> None:
    """The rounds of one arm and seed; each round's promoted policy is judged, or the last one's alone, without texts.
    One arm at a time in a run folder."""
    numbers = range(n if last else 1, n + 1)
    names = {number: f"{arm.replace(' ', '-')}.seed-{seed}.round-{number}" for number in numbers}
    if all((given.results / f"{name}.json").is_file() for name in names.values()):
        return
    against = f"prompts.against=[{{path: {given.ifeval.absolute()}}}]"
    changes = [f"model.path={given.model.absolute()}", f"seed={seed}", against]
    words = [word for change in [*changes, *settings, *given.extra] for word in ("--set", change)]
    command("round", str(given.recipe), "--n", str(n), "--run", str(run), *words, given=given)
    rounds = {one.number: one for one in open_run(run).rounds}
    for number, name in names.items():
        judged(str(run / (rounds[number].policy or "")), given, name, [] if last else given.texts)


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan


def line(name: str, found: Mapping[str, Any], base: Mapping[str, Any], check: Checked) -> str:
    """A row of the table."""
    strict = [float(all(verdicts)) for verdicts in found["followed"].values()]
    before = [float(all(base["followed"][key])) for key in found["followed"]]
    change = statistics.paired_difference(strict, before)
    low, high = (100 * end for end in change["ci95"])
    cells = [
        name,
        statistics.in_words(statistics.proportion(strict)),
        "–" if found is base else f"{100 * change['value']:+.1f} [{low:+.1f}, {high:+.1f}]",
        f"{check.share(found, True):.3f}",
        f"{check.share(found, False):.3f}",
        f"{found['tokens']:.0f}",
        f"{100 * found['unfinished']:.0f} %",
        f"{found['distinct-2']:.3f}",
        *(
            f"{found['texts'][file]:.3f} ({100 * (found['texts'][file] / base['texts'][file] - 1):+.1f} %)"
            if file in found["texts"]
            else "–"
            for file in base["texts"]
        ),
    ]
    return f"| {' | '.join(cells)} |"


def table(given: argparse.Namespace, base: Mapping[str, Any]) -> str:
    """All that is there. A log-likelihood is negative: a rise of its size is a loss."""
    heads = [
        "",
        "IFEval, strict",
        "points above the base",
        "kinds trained",
        "not trained",
        "tokens",
        "unfinished",
        "distinct-2",
    ]
    heads += [f"log-likelihood, {file}" for file in base["texts"]]
    rows = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    check = Checked(given.ifeval)
    rows.append(line("base", base, base, check))
    for file in sorted(given.results.glob("*.round-*.json")):
        name = file.stem.replace("-", " ").replace(".", ", ")
        rows.append(line(name, json.loads(file.read_text("utf-8")), base, check))
    return "\n".join(rows)


def overlapping(given: argparse.Namespace) -> int:
    """Training and dev prompts that hold more than half of one of IFEval's prompts, in 8-grams."""
    own = [
        json.loads(row)["prompt"]
        for name in ("train", "dev")
        for row in (ROOT / "data" / f"instructions.{name}.jsonl").read_text("utf-8").splitlines()
    ]
    theirs = [json.loads(row)["prompt"] for row in given.ifeval.read_text("utf-8").splitlines()]
    return sum(map(bool, map(overlap(theirs, 8, 0.5), own)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ifeval", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--recipe", default="instructions")
    parser.add_argument("--folder", type=Path, default=Path("runs/instructions-benchmark"), help="of runs and answers")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "instructions")
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", type=int, default=200, help="texts of each file")
    parser.add_argument("--new", type=int, default=NEW_TOKENS, help="longest answer to IFEval, tokens")
    parser.add_argument("--set", dest="extra", action="append", default=[], help="as of `posttrain round`")
    parser.add_argument("--parts", action="store_true", help="also the arms")
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    given = parser.parse_args()
    for folder in (given.folder, given.results):
        folder.mkdir(parents=True, exist_ok=True)
    given.log = given.folder / "log"
    base = judged(str(given.model.absolute()), given, "base", given.texts)
    if not given.table:
        for seed in given.seeds:
            play(LOOP, seed, [], given.n, given.folder / f"run-{seed}", given)
        for arm, settings in PARTS.items() if given.parts else ():
            changes, folder = [*HALF, *settings], given.folder / "run-parts"
            play(f"half, {arm}", given.seeds[0], changes, min(2, given.n), folder, given, last=True)
    print(table(given, base))
    print(f"\ntraining and dev prompts that overlap one of IFEval's: {overlapping(given)}")


if __name__ == "__main__":
    main()
