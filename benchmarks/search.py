"""Search against plain sampling of equal cost, on the prompts that K samples left unsolved.

    python benchmarks/search.py [MODEL] [--prompts 400] [--k 8] [--tokens 1500] [--seeds 0 1 2]
    python benchmarks/search.py [MODEL] --dpo POLICY REFERENCE --model STEP_REWARD     # and with scores of steps

MODEL: by default the task's shipped base. The longest training problems of step-problems, K samples each at temperature
1; those that none solved go to each side: `sampling` draws more whole answers, `beam` and `mcts` are the stage's, each
until the first right answer or `tokens` sampled tokens of a prompt. `solved`: the share, and `difference` that to
sampling, paired: means over prompts of each prompt's mean over the seeds that left it unsolved, with 95 % intervals.
`tokens a solution`: all tokens that were sampled, by what was solved. CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from posttrain import rewards, shipped
from posttrain.config import RewardEntry, Search
from posttrain.data.chat_template import render_prompt
from posttrain.engines.protocol import Request, SamplingParams, completion_seed
from posttrain.evaluation import statistics
from posttrain.rewards.combine import RIGHT
from posttrain.rewards.scoring import reward_values
from posttrain.rollouts import cached_engine
from posttrain.search.continuing import Asked, Setting
from posttrain.search.searching import Shard, search
from posttrain.search.step_scorer import ByDPO, ByModel, StepScorer

LONGEST, AT_ONCE = 96, 8
Side = Callable[[Sequence[Asked], int], dict[int, tuple[bool, int]]]  # by place: whether it was solved, and the tokens


def functions() -> tuple[Any, ...]:
    entry = RewardEntry.model_validate({"use": "step-problems.py", "function": "correct"})
    return (rewards.load(entry, rewards.Runtime(None, Path("."))),)


def problems(model: Path, count: int) -> list[Asked]:
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    lines = shipped.locate("data", "step-problems.train.jsonl").read_text("utf-8").splitlines()
    rows = sorted(map(json.loads, lines), key=lambda row: -len(row["steps"].split()))[:count]
    asked = []
    for place, row in enumerate(rows):
        prompt = [{"role": "user", "content": row["prompt"]}]
        columns = json.dumps({"answer": row["answer"], "steps": row["steps"]})
        named = {"prompt_id": str(place), "prompt": prompt, "columns": columns}
        asked.append(Asked(place, named, tuple(render_prompt(tokenizer, prompt))))
    return asked


def answers(
    model: Path, asked: Sequence[Asked], first: int, count: int, seed: int, checker: tuple[Any, ...]
) -> list[list[tuple[bool, int]]]:
    """Of `count` answers to each prompt, from the one with the number `first` on, whether each is right, and its
    tokens, its end included."""
    engine = cached_engine(str(model), "shared-prefix", "auto")
    numbers = range(first, first + count)
    requests = [
        Request(one.ids, tuple(completion_seed(seed, one.row["prompt_id"], at) for at in numbers)) for one in asked
    ]
    found = []
    for one, some in zip(asked, engine.generate(requests, SamplingParams(1.0, LONGEST)), strict=True):
        rows = [
            {**one.row, "completion": [{"role": "assistant", "content": made.text}], "tokens": made.tokens}
            for made in some
        ]
        (scores,) = reward_values(rows, checker).values()
        ended = [made.finish == "stop" for made in some]
        right = [score is not None and score >= RIGHT and end for score, end in zip(scores, ended, strict=True)]
        found.append([(ok, len(made.tokens) + end) for ok, made, end in zip(right, some, ended, strict=True)])
    return found


def sampling(model: Path, tokens: int, checker: tuple[Any, ...]) -> Side:
    """Whole answers, a few at a time for every prompt that is not done."""

    def side(asked: Sequence[Asked], seed: int) -> dict[int, tuple[bool, int]]:
        found = {one.place: (False, 0) for one in asked}
        first = 0
        while left := [one for one in asked if not found[one.place][0] and found[one.place][1] < tokens]:
            for one, some in zip(left, answers(model, left, first, AT_ONCE, seed, checker), strict=True):
                for ok, cost in some:
                    if not found[one.place][0] and found[one.place][1] < tokens:
                        found[one.place] = ok, found[one.place][1] + cost
            first += AT_ONCE
        return found

    return side


def searching(model: Path, section: Search, checker: tuple[Any, ...], scorer: StepScorer | None) -> Side:
    def side(asked: Sequence[Asked], seed: int) -> dict[int, tuple[bool, int]]:
        how = section.temperature, section.max_new_tokens, ("\n",), checker, {checker[0].name: 1.0}
        setting = Setting(str(model), "shared-prefix", "auto", seed, *how)
        rows = search(Shard(tuple(asked), section, setting, scorer)).to_pylist()
        return {row["place"]: (row["found"] is not None, row["sampled"]) for row in rows}

    return side


Found = Sequence[tuple[int, bool, int]]  # of a prompt and seed: its place, whether it was solved, and the tokens


def by_prompt(found: Found) -> dict[int, float]:
    """The share of the seeds in which each prompt was solved."""
    shares: dict[int, list[bool]] = {}
    for place, ok, _ in found:
        shares.setdefault(place, []).append(ok)
    return {place: sum(some) / len(some) for place, some in shares.items()}


def table(found: Mapping[str, Found], seconds: Mapping[str, float]) -> str:
    lines = ["| side | searches | solved | difference | tokens | tokens a solution | CPU s |", "| --- " * 7 + "|"]
    base = by_prompt(found["sampling"])
    for name, some in found.items():
        shares, tokens, solved = by_prompt(some), sum(cost for *_, cost in some), sum(ok for _, ok, _ in some)
        difference = statistics.paired_difference([shares[one] for one in base], list(base.values()))
        change = "–" if name == "sampling" else statistics.in_words(difference)
        share = statistics.in_words(statistics.mean_share(list(shares.values())))
        each = f"{tokens / solved:,.0f}" if solved else "–"
        row = [name, len(some), share, change, f"{tokens / len(some):,.0f}", each, f"{seconds[name]:.0f}"]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=shipped.locate("data", "step-base"))
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1500, help="of a prompt")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--exploration", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dpo", nargs=2, help="a DPO policy and its reference")
    parser.add_argument("--model", dest="step_reward", help="a step reward model")
    parser.add_argument("--beta", type=float, default=0.1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    checker, fields = functions(), {"tokens": given.tokens, "width": given.width, "max_new_tokens": LONGEST}
    fields["exploration"] = given.exploration
    scorers: dict[str, StepScorer | None] = {"": None}
    if given.dpo:
        scorers[", steps by DPO"] = ByDPO(given.dpo[0], given.dpo[1], "auto", given.beta, 1.0)
    if given.step_reward:
        scorers[", steps by model"] = ByModel(given.step_reward, "auto")
    sides = {"sampling": sampling(given.model, given.tokens, checker)}
    for method in ("beam", "mcts"):
        for name, scorer in scorers.items():
            section = Search.model_validate({**fields, "method": method})
            sides[f"{method}{name}"] = searching(given.model, section, checker, scorer)
    found: dict[str, list[tuple[int, bool, int]]] = {name: [] for name in sides}
    seconds = dict.fromkeys(sides, 0.0)
    everything = problems(given.model, given.prompts)
    for seed in given.seeds:
        sampled = answers(given.model, everything, 0, given.k, 1000 + seed, checker)
        unsolved = [one for one, some in zip(everything, sampled, strict=True) if not any(ok for ok, _ in some)]
        print(f"seed {seed}: {len(unsolved)} of {len(everything)} prompts unsolved by {given.k} samples", flush=True)
        for name, side in sides.items():
            begun = time.process_time()
            made = side(unsolved, seed)
            seconds[name] += time.process_time() - begun
            found[name] += [(one.place, *made[one.place]) for one in unsolved]
        print(table(found, seconds), flush=True)


if __name__ == "__main__":
    main()
