"""Does a step's score find the wrong step? Single slips, planted in a policy's own right traces.

    python benchmarks/slips.py [POLICY] [--dpo POLICY REFERENCE] [--model STEP_REWARD] [--prompts 1200] [--seeds 0 1 2]

POLICY, by default the task's base, answers held-out step-problems at temperature 1, K times; answers of which every
step is right are the traces, one of a prompt. In a copy of each the result of one step, drawn at random, is changed as
the task's corpus slips, and what follows is reckoned on from it: this step alone is wrong. `lowest`: the share of
copies whose lowest score is that of the slip; `chance`: 1 by the number of steps. `error`, `right`, `F1` as
ProcessBench has them (Zheng et al. 2024): the share of copies whose first step below a bound is the slip, that of
traces without a step below it, and their harmonic mean, with the bound that has the best F1 on every second trace; the
figures are of the others. Scorers: `dpo`, β (log π_DPO − log π_ref) of a step; `model`, a step reward model's logit at
its end; `likelihood`, log π of the step.
"""

from __future__ import annotations

import argparse
import json
import operator
import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from transformers import AutoTokenizer

from posttrain import shipped
from posttrain.data.chat_template import render_prompt
from posttrain.data.steps import tokens_of_steps
from posttrain.engines.detokenize import DECODE
from posttrain.engines.likelihood import Ids, Likelihoods
from posttrain.engines.load import load
from posttrain.engines.protocol import Request, SamplingParams, completion_seed
from posttrain.evaluation import statistics
from posttrain.evaluation.first_errors import found as first_errors
from posttrain.rollouts import cached_engine
from posttrain.search.step_scorer import ByDPO, ByModel, StepScorer

LONGEST = 96
SLIPS = (-10, -2, -1, 1, 2, 10)
OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
LINE = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


@dataclass(frozen=True)
class Trace:
    """A text by its tokens, with the number of tokens of each step, and its wrong step; None: it is right."""

    prompt: Ids
    tokens: Ids
    sizes: list[int]
    wrong: int | None


class ByLikelihood:
    def __init__(self, folder: str) -> None:
        self.model = Likelihoods(load(folder, "float32", "cpu"))

    def __call__(self, contexts: Sequence[Ids], steps: Sequence[Sequence[Ids]]) -> list[list[float]]:
        return [[one.total for one in some] for some in self.model.of(contexts, steps)]


def slipped(text: str, at: int, by: int) -> str | None:
    """The solution with another result of step `at`, and all that follows from it; None where it would not be whole or
    not positive."""
    *lines, _ = text.split("\n")
    old, new = list[int](), list[int]()
    for number, line in enumerate(lines):
        found = LINE.fullmatch(line)
        if found is None:
            return None
        left, right = (_followed(int(found[place]), old, new) for place in (1, 3))
        if found[2] == "/":
            if left % right:
                return None
            result = left // right
        else:
            result = OPERATIONS[found[2]](left, right)
        old.append(int(found[4]))
        new.append(result + by if number == at else result)
        if new[-1] <= 0:
            return None
        lines[number] = f"{left} {found[2]} {right} = {new[-1]}"
    return None if new == old else "\n".join([*lines, f"Answer: {new[-1]}"])


def _followed(value: int, old: Sequence[int], new: Sequence[int]) -> int:
    """A number of a step, where it is the result of an earlier one what that has become."""
    return next((new[at] for at in range(len(old) - 1, -1, -1) if old[at] == value), value)


def traces(model: Path, rows: Sequence[dict[str, str]], k: int, seed: int) -> list[tuple[Trace, Trace]]:
    """Of each prompt with an answer all of whose steps are right that answer, and a copy with a slip."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    engine = cached_engine(str(model), "shared-prefix", "float32")
    checks = runpy.run_path(str(shipped.locate("reward", "step-problems.py")))
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    ids = [tuple(render_prompt(tokenizer, prompt)) for prompt in prompts]
    requests = [
        Request(one, tuple(completion_seed(seed, str(at), number) for number in range(k))) for at, one in enumerate(ids)
    ]

    def trace(prompt: Ids, text: str, wrong: int | None) -> Trace:
        tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
        sizes = tokens_of_steps(tokens, lambda some: tokenizer.decode(list(some), **DECODE), r"\n+")
        return Trace(prompt, tokens, sizes, wrong)

    found, random = [], Random(seed)
    answers = engine.generate(requests, SamplingParams(1.0, LONGEST))
    for row, prompt, one, some in zip(rows, prompts, ids, answers, strict=True):
        for made in some:
            said, steps = [[{"role": "assistant", "content": made.text}]], row["steps"].split()
            right = checks["correct"]([prompt], said, [row["answer"]]) == [1.0]
            if not right or checks["steps_right"]([prompt], said, [row["steps"]]) != [1.0]:
                continue
            at, by = random.randrange(len(steps)), random.choice(SLIPS)
            text = slipped(made.text, at, by) if len(made.text.split("\n")) == len(steps) + 1 else None
            if text is not None:
                found.append((trace(one, made.text, None), trace(one, text, at)))
                break
    return found


def scores(scorer: StepScorer, given: Sequence[Trace]) -> list[list[float]]:
    """Of each step."""
    contexts, steps = list[Ids](), list[list[Ids]]()
    for one in given:
        start = 0
        for size in one.sizes:
            contexts.append((*one.prompt, *one.tokens[:start]))
            steps.append([one.tokens[start : start + size]])
            start += size
    values = iter(some[0] for some in scorer(contexts, steps))
    return [[next(values) for _ in one.sizes] for one in given]


def below(bound: float, given: Sequence[Sequence[float]]) -> list[int | None]:
    return [next((at for at, score in enumerate(some) if score < bound), None) for some in given]


def best_bound(scored: Sequence[Sequence[float]], wrong: Sequence[int | None]) -> float:
    """Of the quantiles of all scores the one with the best F1."""
    every = torch.tensor([score for some in scored for score in some], dtype=torch.float64)
    bounds = torch.quantile(every, torch.linspace(0, 1, 101, dtype=torch.float64)).tolist()
    return max(bounds, key=lambda bound: first_errors(below(bound, scored), wrong)["f1"] or 0.0)


def line(name: str, pairs: Sequence[tuple[Trace, Trace]], scorer: StepScorer) -> str:
    right, wrong = ([pair[side] for pair in pairs] for side in (0, 1))
    scored = [scores(scorer, one) for one in (right, wrong)]
    lowest = [float(some.index(min(some)) == one.wrong) for some, one in zip(scored[1], wrong, strict=True)]
    truth = [one.wrong for one in [*right[::2], *wrong[::2]]]
    bound = best_bound([*scored[0][::2], *scored[1][::2]], truth)
    others = [*scored[0][1::2], *scored[1][1::2]]
    found = first_errors(below(bound, others), [one.wrong for one in [*right[1::2], *wrong[1::2]]])
    figures = [statistics.in_words(statistics.proportion(lowest)), f"{fmean(1 / len(one.sizes) for one in wrong):.3f}"]
    figures += [statistics.in_words(found["error"]), statistics.in_words(found["right"]), f"{found['f1']:.3f}"]
    return f"| {name} | {len(pairs)} | {' | '.join(figures)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, nargs="?", default=shipped.locate("data", "step-base"))
    parser.add_argument("--dpo", nargs=2, help="a DPO policy and its reference")
    parser.add_argument("--model", help="a step reward model")
    parser.add_argument("--prompts", type=int, default=1200)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    scorers: dict[str, StepScorer] = {"likelihood": ByLikelihood(str(given.policy))}
    if given.dpo:
        scorers["dpo"] = ByDPO(given.dpo[0], given.dpo[1], "float32", 1.0, 1.0)  # a scale does not matter here
    if given.model:
        scorers["model"] = ByModel(given.model, "float32")
    lines = shipped.locate("data", "step-problems.heldout.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(row) for row in lines[: given.prompts]]
    pairs = [pair for seed in given.seeds for pair in traces(given.policy, rows, given.k, seed)]
    print("| scorer | traces | lowest is the slip | chance | error | right | F1 |", "| --- " * 7 + "|", sep="\n")
    for name, scorer in scorers.items():
        print(line(name, pairs, scorer), flush=True)


if __name__ == "__main__":
    main()
