"""Preference pairs: two policies answer the same prompts, and the recipe's rewards label the pairs.

Llama 3, section 4.2.1: the two responses come from two different models and are labelled on a scale of four levels;
only pairs labelled "better" or "significantly better" are kept. Here each policy samples `k` answers, and the pair is
the best of one against the worst of the other, whichever way differs more. Pairs labelled by people are added, some
with an edited answer that ranks above the chosen one.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from posttrain.config import Preferences, PromptSet
from posttrain.data import load as loaders
from posttrain.data.pairs import GIVEN, across_policies, level, pair_row, split
from posttrain.data.selection import matching, take
from posttrain.data.tables import PAIRS, by_prompt, column
from posttrain.errors import EmptyStageError
from posttrain.job import Job
from posttrain.models import context_length
from posttrain.rewards.combine import combine
from posttrain.rewards.judge_cache import judge_metrics
from posttrain.rewards.scoring import Scorers, load_scorers, score_table
from posttrain.training.rows import Rendering


def run(job: Job) -> dict[str, Any]:
    """Inputs: prompts; policy and previous (the answers of both, if any are sampled); model if pairs are given.
    Config: preferences, rewards, take, watch (optional: the share of prompts whose pairs only the second reward model
    learns from). Runtime: given (optional). Writes pairs.parquet.

    Raises:
        DataError: the given pairs cannot be read.
        EmptyStageError: no pair was kept.
    """
    section = job.section("preferences", Preferences)
    counts: Counter[str] = Counter()
    given = _given(job, section, counts)
    prompt_count, sampled = _sampled(job, section, counts) if "policy" in job.inputs else (0, [])
    pairs = [
        {**pair, "split": split(pair["prompt_id"], section.heldout, job.config.get("watch", 0.0))}
        for pair in [*sampled, *given]
    ]
    if not any(pair["split"] == "train" for pair in pairs):
        raise EmptyStageError(
            f"preferences: no pair is left from {prompt_count} prompts ({json.dumps(counts)}); keep more levels "
            "(preferences.keep), raise preferences.prompts or preferences.k, or check the rewards"
        )
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), job.out / "pairs.parquet")
    by_people = {"given": len(given)} if "given" in job.runtime else {}
    return {
        "prompts": prompt_count,
        "pairs": len(pairs),
        "labels": dict(counts),
        **by_people,
        **judge_metrics(job.scratch),
    }


def _given(job: Job, section: Preferences, counts: Counter[str]) -> list[dict[str, Any]]:
    """The round's given pairs. Pairs on evaluation prompts, longer than the context, or of levels that are not kept are
    dropped and counted."""
    if "given" not in job.runtime:
        return []
    given = job.runtime["given"]
    sets = [job.inputs["prompts"] / f"{name}.parquet" for name in ("dev", "heldout")]
    evaluated = {one for table in sets for one in column(table, "id")}
    rendered = Rendering(AutoTokenizer.from_pretrained(job.inputs["model"]))
    context = context_length(job.inputs["model"])
    pairs = []
    for pair in loaders.read_preferences(PromptSet.model_validate(given["set"]), given["system"], counts=counts):
        if pair.prompt.id in evaluated:
            counts["in an evaluation set"] += 1
            continue
        answers = [answer for answer in (pair.edited, pair.chosen, pair.rejected) if answer]
        prompt, tokens = rendered(pair.prompt.messages, answers)
        if len(prompt) + max(len(ids) for ids, _ in tokens) > context:
            counts["too long"] += 1
            continue
        counts[pair.level or "no level"] += 1
        if pair.level is None or pair.level in section.keep:
            pairs.append(
                {
                    "prompt_id": pair.prompt.id,
                    "prompt": list(pair.prompt.messages),
                    "chosen": list(pair.chosen),
                    "rejected": list(pair.rejected),
                    "edited": list(pair.edited) if pair.edited else None,
                    "level": pair.level,
                    "source": GIVEN,
                    "columns": json.dumps(dict(pair.prompt.columns), ensure_ascii=False),
                }
            )
    return pairs


def _sampled(job: Job, section: Preferences, counts: Counter[str]) -> tuple[int, list[dict[str, Any]]]:
    """The number of prompts, and for each the pair of answers, one of each policy, unless their scores are equal."""
    fitting = matching(pq.read_table(job.inputs["prompts"] / "train.parquet").to_pylist(), section.where)
    prompts = take(fitting, **job.config["take"])
    labels, weights = load_scorers(job)

    def scored(role: str) -> dict[str, list[dict[str, Any]]]:
        """The scored answers of one policy, by prompt; without prompts of which no answer has a score."""
        answers = job.inputs[role] / "answers.parquet"
        path = score_table(job, answers, Scorers(labels.rewards), job.scratch / f"{role}.parquet")
        found = {}
        for rows in by_prompt(path, ["prompt_id", "tag", "prompt", "completion", "finish", "columns", "rewards"]):
            for row in rows:
                row["score"] = combine(row["rewards"], weights)
            if any(row["score"] is not None for row in rows):
                found[rows[0]["prompt_id"]] = rows
        return found

    policy, previous = scored("policy"), scored("previous")
    pairs = []
    for prompt in prompts:
        if prompt["id"] not in policy or prompt["id"] not in previous:
            counts["no score"] += 1
            continue
        pair = across_policies(policy[prompt["id"]], previous[prompt["id"]])
        if pair is None:
            counts["tie"] += 1
            continue
        chosen, rejected = pair
        name = level(chosen["score"] - rejected["score"], section.levels.model_dump())
        counts[name] += 1
        if name in section.keep:
            pairs.append(pair_row(chosen, rejected, f"{chosen['tag']} over {rejected['tag']}", name))
    return len(prompts), pairs
