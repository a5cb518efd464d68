"""What a policy can do, on dev: greedy, sampled, reward, length. By this it is promoted, or not.

Accuracy is what the recipe's reward functions say of prompts on which they have an opinion (a score of at least 0.5
counts as right). `measure` rewards are reported only: nothing is chosen by them, no model is trained on them. For
those, the reward model's pick of K stands beside the average candidate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.config import Evaluate
from posttrain.data.messages import Prompt
from posttrain.data.tables import GREEDY, SAMPLED, by_prompt
from posttrain.engines.protocol import SamplingParams
from posttrain.evaluation import statistics
from posttrain.job import Job
from posttrain.rewards.combine import REWARD_MODEL, RIGHT, combine
from posttrain.rollouts import Judges, Sampling, engine, judges, load_rewards, plan, run_rollouts
from posttrain.seeds import derive_seed
from posttrain.storage.shards import concatenate

COLUMNS = ["prompt_id", "tag", "n_tokens", "finish", "rewards"]


def run(job: Job) -> dict[str, Any]:
    """Inputs: prompts, policy, reward_model (optional). Config: evaluate, rewards, engine, temperatures (further ones,
    for the base). Writes dev.parquet; returns {"dev": F}.
    """
    return answer_and_judge(job, "dev")


def answer_and_judge(job: Job, name: str) -> dict[str, Any]:
    """The figures F of the policy on the prompt set `name`, whose judged answers are written to NAME.parquet."""
    section = job.section("evaluate", Evaluate)
    scoring, weights = judges(job)
    measures = load_rewards(section.measure, job)
    everything = Judges((*scoring.rewards, *measures), scoring.reward_model)
    probe(job, everything)
    functions = {name: weight for name, weight in weights.items() if name != REWARD_MODEL}

    def sampling(tag: str, temperature: float, k: int, greedy: bool = False) -> Sampling:
        return Sampling(
            policy=str(job.inputs["policy"]),
            params=SamplingParams(temperature, section.max_new_tokens),
            k=k,
            seed=derive_seed(job.seed, tag),
            tag=tag,
            greedy=greedy,
            **engine(job),
        )

    def answered(tag: str, settings: Sequence[Sampling], asked: Sequence[Mapping[str, Any]]) -> Path:
        size = job.config["engine"]["shard_prompts"]
        shards = [shard for one in settings for shard in plan(asked, one, everything, size)]
        target = job.scratch / f"{name}-{tag}.parquet"
        run_rollouts(shards, job.scratch / f"{name}-{tag}", target, job.workers, job.progress)
        return target

    prompts = pq.read_table(job.inputs["prompts"] / f"{name}.parquet").to_pylist()
    parts = [answered("first", [sampling(SAMPLED, section.temperature, section.k, greedy=True)], prompts)]
    # Of further temperatures only pass@1 is of interest: half as many samples do, of what the functions judge.
    further = [sampling(f"T={each}", each, max(1, section.k // 2)) for each in job.config.get("temperatures", [])]
    judged = _judged(parts[0], functions) if further else set()
    if judged:
        parts.append(answered("further", further, [prompt for prompt in prompts if prompt["id"] in judged]))
    path = job.out / f"{name}.parquet"
    concatenate(parts, path)
    return {name: figures(by_prompt(path, COLUMNS), functions, [measure.name for measure in measures])}


def _judged(table: Path, functions: Mapping[str, float]) -> set[str]:
    """Ids of the prompts to which any answer got an opinion of the reward functions."""
    return {
        rows[0]["prompt_id"]
        for rows in by_prompt(table, COLUMNS)
        if any(combine(row["rewards"], functions) is not None for row in rows)
    }


def probe(job: Job, everything: Judges) -> None:
    """Ask each reward function once, so that one that fails does so before anything is sampled or trained."""
    first = pq.read_table(job.inputs["prompts"] / "dev.parquet").slice(0, 4).to_pylist()
    prompts = [Prompt(tuple(row["prompt"]), json.loads(row["columns"]), row["line"]) for row in first]
    for reward in everything.rewards:
        reward.probe(prompts)


def figures(
    groups: Iterable[list[dict[str, Any]]], functions: Mapping[str, float], measures: Iterable[str]
) -> dict[str, Any]:
    """The figures F of one prompt set from its samples, grouped by prompt and setting.

    Returns greedy, pass@1, pass@K, reward, mean_length, unfinished, and pass@1 by further temperature.
    """
    names = list(measures)
    greedy: list[float] = []
    passed: dict[str, list[float]] = {}
    any_passed: list[float] = []
    logits: list[float] = []
    lengths: list[int] = []
    unfinished: list[float] = []
    measured: dict[str, dict[str, list[float]]] = {
        name: {"greedy": [], "sampled": [], "reward_model_pick": []} for name in names
    }
    k = 1
    for rows in groups:
        tag = rows[0]["tag"]
        verdicts = [combine(row["rewards"], functions) for row in rows]
        hits = [float(verdict >= RIGHT) for verdict in verdicts if verdict is not None]
        if tag == GREEDY:
            greedy += hits
        elif hits:
            passed.setdefault(tag, []).append(sum(hits) / len(hits))
        for name in names:
            judged = [row["rewards"] for row in rows if row["rewards"][name] is not None]
            if not judged:
                continue
            if tag == GREEDY:
                measured[name]["greedy"].append(judged[0][name])
            elif tag == SAMPLED:
                measured[name]["sampled"].append(sum(values[name] for values in judged) / len(judged))
                if REWARD_MODEL in judged[0]:
                    pick = max(judged, key=lambda values: values[REWARD_MODEL])
                    measured[name]["reward_model_pick"].append(pick[name])
        if tag != SAMPLED:
            continue
        k = len(rows)
        if hits:
            any_passed.append(max(hits))
        if REWARD_MODEL in rows[0]["rewards"]:
            logits.append(sum(row["rewards"][REWARD_MODEL] for row in rows) / k)
        lengths += [row["n_tokens"] for row in rows]
        unfinished += [float(row["finish"] != "stop") for row in rows]
    result: dict[str, Any] = {
        "greedy": statistics.proportion(greedy),
        "pass@1": statistics.mean(passed.get(SAMPLED, [])),
        f"pass@{k}": statistics.proportion(any_passed),
        "reward": statistics.mean(logits),
        "mean_length": sum(lengths) / max(len(lengths), 1),
        "unfinished": sum(unfinished) / max(len(unfinished), 1),
    }
    if names:
        result["measure"] = {
            name: {setting: statistics.mean(values) for setting, values in by_setting.items()}
            for name, by_setting in measured.items()
        }
    further = {tag: statistics.mean(values) for tag, values in passed.items() if tag != SAMPLED}
    if further:
        result["pass@1_by_temperature"] = {SAMPLED: result["pass@1"], **further}
        result["pass@1_best_temperature"] = max([result["pass@1"], *further.values()], key=lambda f: f["value"] or 0.0)
    return result
