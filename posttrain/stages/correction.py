"""Asks the policy again where it is wrong: a wrong answer goes back to it with what is said of it (Llama 3, section
4.3.3), and second answers that are right stand beside the samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from posttrain.config import Correction
from posttrain.data.chat_template import render_prompt
from posttrain.data.messages import Message
from posttrain.data.pairs import pair_row
from posttrain.data.tables import CORRECTED, PAIRS
from posttrain.engines.protocol import SamplingParams
from posttrain.job import Job
from posttrain.models import context_length
from posttrain.rewards.combine import RIGHT, combine, of_functions
from posttrain.rewards.scoring import Scorers, load_scorers
from posttrain.rollouts import Sampling, engine, plan, run_rollouts, sampled_by
from posttrain.search.beside import NOTHING_CHECKED, Row, as_scored, logits, unsolved, write
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
    engine. Writes scored.parquet: the samples, with a row tagged CORRECTED for each right answer; and pairs.parquet,
    each of those over the wrong answer that it corrects.

    Returns how many `prompts` are of each kind, and how many were `solved` in each turn.
    """
    section, samples = job.section("correction", Correction), job.inputs["samples"]
    scorers, weights = load_scorers(job)
    cases, prompts = _cases(job, section, of_functions(weights))
    found, pairs, solved, tokens = dict[str, Row](), list[dict[str, Any]](), list[int](), 0
    for turn in range(section.turns):
        if not cases:
            break
        answers = _answers(job, section, cases, turn, scorers, weights)
        tokens += sum(row["n_tokens"] for some in answers for row in some)
        left = list[_Case]()
        for case, some in zip(cases, answers, strict=True):
            right = next((row for row in some if _is_right(row, of_functions(weights))), None)
            if right is None:
                left += [case.asked_again(row, section.message) for row in some[:1] if _can_follow(row)]
                continue
            learned = {} if section.learn == "answer" else {"prompt": case.said}
            of_answer = {name: right[name] for name in ("completion", "tokens", "rewards", "score")}
            found[case.prompt_id] = {**of_answer, **learned}
            if right["score"] is not None and case.wrong["score"] is not None:
                pairs.append(pair_row(right, case.wrong, "correction"))
        solved.append(len(found) - sum(solved))
        cases = _fitting(job, section, left)
    total = write(samples, job.out, CORRECTED, found)
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), job.out / "pairs.parquet", compression="zstd")
    return {
        "rows": total,
        "prompts": {**prompts, "solved": len(found)},
        "solved": solved,
        "pairs": len(pairs),
        "tokens": tokens,
        "logits": logits(samples),
        **({"fallback": [NOTHING_CHECKED]} if prompts["unchecked"] and not prompts["asked"] else {}),
        **sampled_by(job),
    }


def _cases(job: Job, section: Correction, weights: Mapping[str, float]) -> tuple[list[_Case], dict[str, int]]:
    """Those to ask again, in the order of a draw by the seed; and how many prompts are of each kind: `asked`, `right`
    (a sample is), `unchecked` (no function scores a sample), `unfinished` (no sample came to its end with a text),
    `too_long`, and `left_out` beyond `correction.prompts`. `weights`: of the functions."""
    columns = ["prompt", "columns", "completion", "finish", "score"]
    without, counts = unsolved(job.inputs["samples"], weights, columns)
    ended = [(answers[0], [row for row in answers if _can_follow(row)]) for answers in without]
    cases = [
        _Case({name: row[name] for name in ("prompt_id", "prompt", "columns")}, best, row["prompt"]).asked_again(
            best, section.message
        )
        for row, answers in ended
        if answers
        for best in [max(answers, key=lambda one: -1e300 if one["score"] is None else one["score"])]
    ]
    fitting = _fitting(job, section, cases)
    fitting.sort(key=lambda case: derive_seed(job.seed, "prompts", case.prompt_id))
    asked = fitting[: section.prompts]
    others = {"unfinished": len(without) - len(cases), "too_long": len(cases) - len(fitting)}
    return asked, {"asked": len(asked), **counts, **others, "left_out": len(fitting) - len(asked)}


def _can_follow(row: Row) -> bool:
    """Whether something can be said to an answer: it came to its end, and has a text."""
    return row["finish"] == "stop" and bool(row["completion"][-1]["content"].strip())


def _fitting(job: Job, section: Correction, cases: Sequence[_Case]) -> list[_Case]:
    """Those with room for an answer."""
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["policy"])
    room = context_length(job.inputs["policy"]) - section.max_new_tokens
    return [case for case in cases if len(render_prompt(tokenizer, case.said)) <= room]


def _answers(
    job: Job, section: Correction, cases: Sequence[_Case], turn: int, scorers: Scorers, weights: Mapping[str, float]
) -> list[list[Row]]:
    """The answers to what was said in each case, scored as answers to its prompt."""
    params = SamplingParams(section.temperature, section.max_new_tokens)
    sampling = Sampling(
        str(job.inputs["policy"]), params, section.k, derive_seed(job.seed, "turn", turn), CORRECTED, **engine(job)
    )
    rows = [{"id": case.prompt_id, "prompt": case.said, "columns": case.row["columns"]} for case in cases]
    table = job.scratch / f"turn-{turn}.parquet"
    run_rollouts(plan(rows, sampling, job.config["engine"]["shard_tokens"]), job, table)
    by_prompt: dict[str, list[dict[str, Any]]] = {case.prompt_id: [] for case in cases}
    for row in pq.read_table(table).to_pylist():
        by_prompt[row["prompt_id"]].append(row)
    answers = [{**row, "prompt": case.row["prompt"]} for case in cases for row in by_prompt[case.prompt_id]]
    scored = iter(as_scored(answers, scorers, weights, job.inputs["samples"]))
    return [[next(scored) for _ in by_prompt[case.prompt_id]] for case in cases]


def _is_right(row: Row, weights: Mapping[str, float]) -> bool:
    verdict = combine(json.loads(row["rewards"]), weights)
    return row["finish"] == "stop" and verdict is not None and verdict >= RIGHT
