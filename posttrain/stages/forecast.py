"""How likely the first rounds' policies make the right answers, from which the accuracy of later rounds is forecast.
Reported only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from posttrain.config.forecast import Forecast
from posttrain.data.chat_template import render_completion, render_prompt
from posttrain.data.tables import SAMPLED, by_prompt
from posttrain.engines.protocol import Ids
from posttrain.evaluation.forecast import normalised
from posttrain.evaluation.likelihood_shards import Work, log_likelihoods
from posttrain.evaluation.statistics import known_mean
from posttrain.job import Job
from posttrain.rewards.combine import RIGHT, combine
from posttrain.seeds import derive_seed

_COLUMNS = ["prompt_id", "tag", "prompt", "completion", "rewards"]


def run(job: Job) -> dict[str, Any]:
    """Inputs: policy_0 … policy_R, and heldout_0 … heldout_R, their scored held-out answers. Config: forecast, rewards
    (weights of the functions that say what is right), engine (use, dtype, shard_tokens). Writes nothing.

    Candidates are what any of these policies sampled for a prompt, each text once. Returns the number of `prompts` that
    have right and wrong ones, of `candidates`, and `points`, by round: `nll`, the mean over those prompts of
    `evaluation.forecast.normalised`, and `accuracy`, pass@1 over all prompts. `points` is empty where none has both.
    """
    section, weights = job.section("forecast", Forecast), job.config["rewards"]
    numbers = range(len(job.numbered("policy")))
    candidates: dict[str, dict[str, tuple[Any, bool]]] = {}
    accuracy = []
    for number in numbers:
        shares = []
        for prompt, answers in _sampled(job.inputs[f"heldout_{number}"] / "heldout.parquet", weights):
            known = candidates.setdefault(prompt, {})
            for row, right in answers:
                known.setdefault(row["completion"][-1]["content"], (row["prompt"], right))
            shares.append(sum(right for _, right in answers) / len(answers))
        accuracy.append(known_mean(shares))
    both = {prompt: some for prompt, some in candidates.items() if len({right for _, right in some.values()}) == 2}
    asked = sorted(both, key=lambda prompt: derive_seed("forecast", prompt))[: section.prompts]
    count = sum(len(both[prompt]) for prompt in asked)
    progress = job.counter(count * len(numbers), "answers")
    points = []
    for number in numbers if asked else ():
        likelihoods = iter(_totals(job, f"policy_{number}", [both[prompt] for prompt in asked], progress))
        unlikely = []
        for prompt in asked:
            right = [right for _, right in both[prompt].values()]
            unlikely.append(normalised([next(likelihoods) for _ in right], right))
        points.append({"nll": known_mean(unlikely), "accuracy": accuracy[number]})
    return {"prompts": len(asked), "candidates": count, "points": points}


def _sampled(table: Path, weights: Mapping[str, float]) -> Iterator[tuple[str, list[tuple[dict[str, Any], bool]]]]:
    """Of each prompt whose answers these functions judge: its id, and its sampled rows with whether each is right."""
    for rows in by_prompt(table, _COLUMNS):
        verdicts = [(row, combine(row["rewards"], weights)) for row in rows if row["tag"] == SAMPLED]
        judged = [(row, verdict >= RIGHT) for row, verdict in verdicts if verdict is not None]
        if judged:
            yield rows[0]["prompt_id"], judged


def _totals(
    job: Job, role: str, prompts: list[dict[str, tuple[Any, bool]]], progress: Callable[[int], None]
) -> list[float]:
    """The log-likelihood of each candidate of each prompt under the policy of this role."""
    policy, scratch = job.inputs[role], job.scratch / role  # of its own: the texts are the same for all
    tokenizer, engine = AutoTokenizer.from_pretrained(policy), job.config["engine"]
    pairs = list[tuple[Ids, Ids]]()
    for candidates in prompts:
        asked = next(iter(candidates.values()))[0]
        before = tuple(render_prompt(tokenizer, asked))
        pairs += [(before, tuple(render_completion(tokenizer, asked, text))) for text in candidates]
    work = Work(policy, scratch, job.workers, engine, engine["shard_tokens"], progress)
    return [total for total, _ in log_likelihoods(pairs, work)]
