"""On-policy training against DPO against both, in the loop, with what each cost.

    python benchmarks/online_rounds.py quickstart [--seeds 0 1 2] [--n 3] [--folder runs/online-rounds]
    python benchmarks/online_rounds.py reasoning --table                    # of what is there

Arms: `DPO`, the recipe as it is but for a search; `GRPO` and `RLOO`, on-policy training in DPO's place; `both`, GRPO
with half of the prompts, then DPO with half of them. One worker and one stage at a time, so that a stage's seconds are
those of one core (the models are small). `core s` and `tokens` are those of what the arms differ in: answers for pairs,
their scores, DPO and the on-policy stage, in all rounds; `--prompts` is to be chosen so that they are about equal.
Judged on held-out prompts that can be checked; on reasoning those of 5 and 6 steps. Differences to DPO are paired by
prompt, means over the seeds; intervals of 95 % over prompts. `KL`: nats an answer between the policy and the base, on
answers of the policy at temperature 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from arms import Row, finished, is_long, judged, manifests, over_seeds, play
from transformers import AutoTokenizer

from posttrain import shipped
from posttrain.data.chat_template import render_prompt
from posttrain.data.tables import SAMPLED
from posttrain.engines.likelihood import Likelihoods
from posttrain.engines.load import load
from posttrain.evaluation import statistics
from posttrain.recipe.load import load as load_recipe

ROOT = Path(__file__).parent.parent
LEARNED_FROM = ("answers-pairs", "pairs", "dpo", "online")
RATE = 5e-5
ALONE = ["compute.workers=1", "compute.stages_at_once=1"]
KL_ANSWERS = 1000


def arms(recipe: str, prompts: int, extra: Sequence[str]) -> dict[str, list[str]]:
    """The changes of each arm. `prompts`: of the on-policy stage where it is alone."""
    given = load_recipe(recipe, extra)
    assert given.pairs and given.pairs.prompts

    def online(algorithm: str, count: int) -> str:
        fields = {"algorithm": algorithm, "prompts": count, "group": 8, "without_prompts": "skip"}
        trl = {"learning_rate": RATE, "num_train_epochs": 1, "per_device_train_batch_size": 128}
        return f"online={json.dumps({**fields, **trl})}"

    search = ["search=null", "dpo.pairs_from=pairs"] if given.search else []
    no_dpo = ["dpo=null", "pairs=null", *(["search=null"] if given.search else [])]
    return {
        "DPO": search,
        "GRPO": [*no_dpo, online("grpo", prompts)],
        "RLOO": [*no_dpo, online("rloo", prompts)],
        "both": [
            *search,
            online("grpo", prompts // 2),
            f"pairs.prompts={given.pairs.prompts // 2}",
        ],
    }


def counts(columns: Row) -> bool:
    """Whether a held-out prompt is judged: of step-problems the long ones."""
    return is_long(columns) if "steps" in columns else True


def spent(run: Path, n: int) -> tuple[float, int]:
    """Core-seconds and sampled tokens."""
    made = manifests(run, n, LEARNED_FROM)
    return sum(one["seconds"] for one in made), sum(one["metrics"].get("tokens", 0) for one in made)


@cache
def base_of(folder: str) -> tuple[Any, Likelihoods]:
    return AutoTokenizer.from_pretrained(folder), Likelihoods(load(folder, "float32", "cpu"))


def kl(run: Path, number: int, base: str) -> float:
    """Nats an answer: the mean of log π − log π_base over the policy's own held-out answers."""
    tokenizer, likelihoods = base_of(base)
    table = pq.read_table(run / f"round-{number}" / "answers-heldout" / "answers.parquet")
    rows = [row for row in table.to_pylist() if row["tag"] == SAMPLED]
    rows = rows[:: max(1, len(rows) // KL_ANSWERS)][:KL_ANSWERS]
    contexts = [render_prompt(tokenizer, row["prompt"]) for row in rows]
    found = likelihoods.of(contexts, [[row["tokens"]] for row in rows])
    return sum(row["logprob"] - one.total for row, (one,) in zip(rows, found, strict=True)) / len(rows)


def table(runs: Mapping[str, Sequence[Path]], n: int, base: str) -> str:
    lines = [
        "| round | arm | pass@1 | this − DPO | greedy | this − DPO | core s | tokens | KL | seeds |",
        "| --- " * 10 + "|",
    ]
    for number in range(n + 1):
        means = {arm: over_seeds([judged(run, number, counts) for run in some]) for arm, some in runs.items()}
        for arm, figures in means.items() if number else [("base", means["DPO"])]:
            some, cells = runs[arm if number else "DPO"], list[Any]([number, arm])
            for at, values in enumerate(figures):
                other = statistics.paired_difference(values, means["DPO"][at]) if arm not in ("DPO", "base") else None
                cells += [f"{sum(values) / len(values):.3f}", statistics.in_words(other)]
            costs = [spent(run, number) for run in some]
            seconds, tokens = (sum(of_one) / len(some) for of_one in zip(*costs, strict=True))
            apart = sum(kl(run, number, base) for run in some) / len(some) if number else 0.0
            cells += [f"{seconds:.0f}", f"{tokens:,.0f}", f"{apart:.2f}", len(some)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "online-rounds")
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=256, help="of the on-policy stage where it is alone")
    parser.add_argument("--set", dest="extra", action="append", default=[], help="as of `posttrain round`")
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    given = parser.parse_args()
    changes = arms(given.recipe, given.prompts, given.extra)
    runs: dict[str, list[Path]] = {arm: [] for arm in changes}
    for seed in given.seeds:
        for arm, own in changes.items():
            run = given.folder / f"{given.recipe}-{arm}-{seed}"
            words = [f"seed={seed}", *ALONE, *own, *given.extra]
            runs[arm].append(run if given.table else play(given.recipe, given.n, run, words))
    base = str(shipped.locate("data", load_recipe(given.recipe, given.extra).model.path))
    there = {arm: [run for run in some if finished(run, given.n)] for arm, some in runs.items()}
    print(table({arm: some for arm, some in there.items() if some}, given.n, base))


if __name__ == "__main__":
    main()
