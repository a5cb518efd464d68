"""Asks the policy again where it is wrong: a wrong answer goes back to it with what is said of it (Llama 3, section
4.3.3), and second answers that are right stand beside the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.config import Correction
from posttrain.data.chat_template import render_prompt
from posttrain.data.messages import Message, under
from posttrain.data.tables import CORRECTED, PAIRS
from posttrain.engines.protocol import SamplingParams
from posttrain.job import Job
from posttrain.models import context_length
from posttrain.rewards import RewardFunction
from posttrain.rewards.combine import RIGHT, combine, of_functions
from posttrain.rewards.judge_cache import judge_metrics
from posttrain.rewards.scoring import load_scorers, reward_values
from posttrain.rollouts import Sampling, cached_tokenizer, engine, plan, run_rollouts, sampled_by, sampled_slowly
from posttrain.search.beside import Row, as_scored, better, logits, unchecked, unsolved, write
from posttrain.seeds import derive_seed


@dataclass(frozen=True)
class _Case:
    """A prompt without a right answer: its row (prompt_id, prompt, columns), a wrong answer to it (a scored sample),
    and all that was said so far."""

    row: Row
    wrong: Row
    said: Sequence[Message]

    @property
    def prompt_id(self) -> str:
        return self.row["prompt_id"]

    def asked_again(self, answer: Row, message: str) -> _Case:
        """The same, with an answer to it that is wrong too."""
        return replace(self, said=[*self.said, *answer["completion"], {"role": "user", "content": message}])


def run(job: Job) -> dict[str, Any]:
    """Inputs: samples (scored), policy (what sampled them); optional: reward_model. Config: correction, rewards,
    engine; system of the samples, if any. Runtime: server, if one samples. Writes scored.parquet: the samples, with a
    row tagged CORRECTED for each right answer; and pairs.parquet, each of those over the wrong answer that it corrects.

    Returns how many `prompts` are of each kind, and how many were `solved` in each turn.
    """
    section, samples = job.section("correction", Correction), job.inputs["samples"]
    scorers, weights = load_scorers(job)
    functions = of_functions(weights)
    cases, prompts = _cases(job, section, functions)
    right, solved, sampled, tokens, lost = list[tuple[_Case, Row]](), list[int](), 0, 0, 0
    for turn in range(section.turns if cases else 0):
        left = list[_Case]()
        for case, answers in zip(cases, _answers(job, section, cases, turn, scorers.rewards, functions), strict=True):
            sampled, tokens = sampled + len(answers), tokens + sum(row["n_tokens"] for row in answers)
            found = next((row for row in answers if _is(True, row, functions)), None)
            wrong = next((row for row in answers if _is(False, row, functions)), None)
            if found is not None:
                right.append((case, found))
            elif wrong is not None:
                left.append(case.asked_again(wrong, section.message))
        solved.append(len(right) - sum(solved))
        if turn + 1 == section.turns:
            break
        wrong_again, cases = len(cases) - solved[-1], _fitting(job, section, left)
        lost += wrong_again - len(cases)
        if not cases:
            break
    found, pairs = _found(section, right, lambda rows: as_scored(rows, scorers, weights, samples))
    total = write(samples, job.out, CORRECTED, found)
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), job.out / "pairs.parquet", compression="zstd")
    return {
        "rows": total,
        "prompts": {**prompts, "solved": len(right)},
        "solved": solved,
        "not_asked_again": lost,
        "pairs": len(pairs),
        "answers": sampled,
        "tokens": tokens,
        "logits": logits(samples),
        **(unchecked(prompts) or (sampled_slowly(_scratch(job, 0) / "answers.parquet") if solved else {})),
        **judge_metrics(job.scratch),
        **sampled_by(job),
    }


def _cases(job: Job, section: Correction, weights: Mapping[str, float]) -> tuple[list[_Case], dict[str, int]]:
    """Those to ask again, in the order of a draw by the seed; and how many prompts are of each kind: `asked`, `right`
    (a sample is), `unchecked` (no function scores a sample), `unfinished` (no wrong sample came to its end with a
    text), `too_long`, and `left_out` beyond `correction.prompts`. `weights`: of the functions."""
    columns = ["prompt", "columns", "completion", "finish", "score"]
    without, counts = unsolved(job.inputs["samples"], weights, columns)
    wrong = [[row for row in answers if _is(False, row, weights)] for answers in without]
    best = [max(some, key=lambda row: -math.inf if row["score"] is None else row["score"]) for some in wrong if some]
    cases = [
        _Case({name: row[name] for name in ("prompt_id", "prompt", "columns")}, row, row["prompt"]).asked_again(
            row, section.message
        )
        for row in best
    ]
    fitting = _fitting(job, section, cases)
    fitting.sort(key=lambda case: derive_seed(job.seed, "prompts", case.prompt_id))
    asked = fitting[: section.prompts]
    others = {"unfinished": len(without) - len(cases), "too_long": len(cases) - len(fitting)}
    return asked, {"asked": len(asked), **counts, **others, "left_out": len(fitting) - len(asked)}


def _is(right: bool, row: Row, weights: Mapping[str, float]) -> bool:
    """Whether an answer came to its end with a text, and is right, or is wrong, by the functions, whose `weights` these
    are."""
    verdict = combine(row["rewards"], weights)
    ended = row["finish"] == "stop" and bool(row["completion"][-1]["content"].strip())
    return ended and verdict is not None and (verdict >= RIGHT) == right


def _fitting(job: Job, section: Correction, cases: Sequence[_Case]) -> list[_Case]:
    """Those with room for an answer."""
    tokenizer = cached_tokenizer(str(job.inputs["policy"]))
    room, system = context_length(job.inputs["policy"]) - section.max_new_tokens, job.config.get("system")
    return [case for case in cases if len(render_prompt(tokenizer, under(system, case.said))) <= room]


def _answers(
    job: Job,
    section: Correction,
    cases: Sequence[_Case],
    turn: int,
    functions: Sequence[RewardFunction],
    weights: Mapping[str, float],
) -> list[list[Row]]:
    """The answers to what was said in each case, with what the functions give them as answers to its prompt."""
    seed, params = derive_seed(job.seed, "turn", turn), SamplingParams(section.temperature, section.max_new_tokens)
    how = {**engine(job), "system": job.config.get("system")}  # with the stage's own log of a server
    job = replace(job, scratch=_scratch(job, turn))
    job.scratch.mkdir(exist_ok=True)
    sampling = Sampling(str(job.inputs["policy"]), params, section.k, seed, CORRECTED, **how)
    rows = [{"id": case.prompt_id, "prompt": case.said, "columns": case.row["columns"]} for case in cases]
    table = job.scratch / "answers.parquet"
    run_rollouts(plan(rows, sampling, job.config["engine"]["shard_tokens"]), job, table)
    prompts = {case.prompt_id: case.row["prompt"] for case in cases}
    made = [{**row, "prompt": prompts[row["prompt_id"]]} for row in pq.read_table(table).to_pylist()]
    given = reward_values(made, functions)
    by_prompt: dict[str, list[Row]] = {one: [] for one in prompts}
    for at, row in enumerate(made):
        by_prompt[row["prompt_id"]].append({**row, "rewards": {name: some[at] for name, some in given.items()}})
    return [by_prompt[case.prompt_id] for case in cases]


def _scratch(job: Job, turn: int) -> Path:
    """Of each turn its own: the prompts may be the same again."""
    return job.scratch / f"turn-{turn}"


def _found(
    section: Correction, right: Sequence[tuple[_Case, Row]], scored: Callable[[Sequence[Row]], list[Row]]
) -> tuple[dict[str, Row], list[dict[str, Any]]]:
    """The right answer to each prompt, by its id, as `write` takes it; and the rows of PAIRS. `scored`: gives answers
    their rewards and score."""
    found, pairs = dict[str, Row](), list[dict[str, Any]]()
    for (case, _), row in zip(right, scored([row for _, row in right]), strict=True):
        found[case.prompt_id] = row if section.learn == "answer" else {**row, "prompt": case.said}
        pairs += better(row, case.wrong, "correction")
    return found, pairs
