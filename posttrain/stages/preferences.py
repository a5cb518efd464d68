"""Preference pairs: two policies answer the same prompts, the recipe's rewards label who did better.

Llama 3, section 4.2.1: the two responses come from two different models, on a scale of four levels; only pairs
labelled "better" or "significantly better" are kept. Here each policy gives `k` answers and the pair is the best of one
against the worst of the other, whichever differs more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.errors import EmptyStageError
from posttrain.judging import told
from posttrain.pairing import across_policies, level, split
from posttrain.recipe import Preferences
from posttrain.rollouts import Judges, Sampling, engine, judges, plan, run_rollouts, sampled_by
from posttrain.sampling.protocol import SamplingParams
from posttrain.schedule import derive_seed, matching, take
from posttrain.stages import Job
from posttrain.tables import PAIRS, by_prompt
from posttrain.weighing import combine


def run(job: Job) -> dict[str, Any]:
    """Inputs: prompts, policy, previous. Config: preferences, rewards, engine, take, watch (the share of prompts whose
    pairs only the second reward model learns from; optional). Writes pairs.parquet.

    Raises:
        DataError: no prompt is `where` the recipe says.
        EmptyStageError: no pair was kept.
    """
    section = Preferences.model_validate(job.config["preferences"])
    watch = job.config.get("watch", 0.0)
    fitting = matching(pq.read_table(job.inputs["prompts"] / "train.parquet").to_pylist(), section.where)
    prompts = take(fitting, **job.config["take"])
    params = SamplingParams(section.temperature, section.max_new_tokens)
    labels, weights = judges(job)

    def answered(tag: str, asked: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """The judged answers of one policy by prompt, where any of them got a score."""
        if not asked:
            return {}
        sampling = Sampling(str(job.inputs[tag]), params, section.k, derive_seed(job.seed, tag), tag, **engine(job))
        shards = plan(asked, sampling, Judges(labels.rewards), job.config["engine"]["shard_prompts"])
        path = job.scratch / f"{tag}.parquet"
        run_rollouts(shards, job.scratch / tag, path, job.workers, job.progress)
        found = {}
        for rows in by_prompt(path, ["prompt_id", "tag", "prompt", "completion", "columns", "rewards"]):
            for row in rows:
                row["score"] = combine(row["rewards"], weights)
            if any(row["score"] is not None for row in rows):
                found[rows[0]["prompt_id"]] = rows
        return found

    policy = answered("policy", prompts)
    # A pair takes a score on either side, so the other policy need not answer what nobody judges.
    previous = answered("previous", [prompt for prompt in prompts if prompt["id"] in policy])

    counts: Counter[str] = Counter()
    pairs = []
    for prompt in prompts:
        if prompt["id"] not in previous:
            counts["no opinion"] += 1
            continue
        pair = across_policies(policy[prompt["id"]], previous[prompt["id"]])
        if pair is None:
            counts["tie"] += 1
            continue
        chosen, rejected = pair
        margin = chosen["score"] - rejected["score"]
        name = level(margin, section.levels.model_dump())
        counts[name] += 1
        if name not in section.keep:
            continue
        pairs.append(
            {
                "prompt_id": prompt["id"],
                "prompt": prompt["prompt"],
                "chosen": chosen["completion"],
                "rejected": rejected["completion"],
                "edited": None,
                "margin": margin,
                "level": name,
                "source": f"{chosen['tag']} over {rejected['tag']}",
                "split": split(prompt["id"], section.heldout, watch),
                "columns": prompt["columns"],
            }
        )
    if not any(pair["split"] == "train" for pair in pairs):
        raise EmptyStageError(
            f"preferences: no pair is left from {len(prompts)} prompts ({json.dumps(counts)}); keep more levels "
            "(preferences.keep), raise preferences.prompts or preferences.k, or check the rewards"
        )
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), job.out / "pairs.parquet")
    return {
        "prompts": len(prompts),
        "pairs": len(pairs),
        "labels": dict(counts),
        **sampled_by(job),
        **told(job.scratch),
    }
