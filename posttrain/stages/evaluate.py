"""Evaluates a policy on dev: greedy, sampled, reward, length. The gate decides by this.

Accuracy is by the recipe's reward functions, over prompts that they score (at least 0.5 counts as right). `measure`
rewards are reported only: nothing is chosen by them, no model is trained on them. For those, the reward model's pick
of K is reported beside the mean candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from posttrain.config import RewardEntry
from posttrain.data.tables import GREEDY, SAMPLED, by_prompt
from posttrain.evaluation import statistics
from posttrain.job import Job
from posttrain.rewards.combine import REWARD_MODEL, RIGHT, combine, of_functions
from posttrain.rewards.scoring import Scorers, load_rewards, load_scorers, score_table

COLUMNS = ["prompt_id", "tag", "n_tokens", "finish", "rewards"]


def run(job: Job) -> dict[str, Any]:
    """Inputs: answers, reward_model (optional). Config: rewards, measure. Writes dev.parquet; returns {"dev": F}."""
    return score_answers(job, "dev")


def score_answers(job: Job, name: str) -> dict[str, Any]:
    """The figures F of a policy's answers to the prompt set `name`; writes NAME.parquet (SCORED_ANSWERS)."""
    scorers, weights = load_scorers(job)
    measures = load_rewards(job.sections("measure", RewardEntry), job)
    everything = Scorers((*scorers.rewards, *measures), scorers.reward_model)
    path = score_table(job, job.inputs["answers"] / "answers.parquet", everything, job.out / f"{name}.parquet")
    functions = of_functions(weights)
    return {name: figures(by_prompt(path, COLUMNS), functions, [measure.name for measure in measures])}


def figures(
    groups: Iterable[list[dict[str, Any]]], functions: Mapping[str, float], measures: Iterable[str]
) -> dict[str, Any]:
    """The figures F of one prompt set from its samples, grouped by prompt and sampling setting.

    Returns greedy, pass@1, pass@K and those of the powers of 2 between, reward, mean_length, unfinished, and pass@1 by
    further temperature.
    """
    names = list(measures)
    greedy: list[float] = []
    passed: dict[str, list[float]] = {}
    any_passed: list[float] = []
    counted: list[tuple[int, int]] = []  # answers of each prompt, and the right ones
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
            scored = [row["rewards"] for row in rows if row["rewards"][name] is not None]
            if not scored:
                continue
            if tag == GREEDY:
                measured[name]["greedy"].append(scored[0][name])
            elif tag == SAMPLED:
                measured[name]["sampled"].append(sum(values[name] for values in scored) / len(scored))
                if REWARD_MODEL in scored[0]:
                    pick = max(scored, key=lambda values: values[REWARD_MODEL])
                    measured[name]["reward_model_pick"].append(pick[name])
        if tag != SAMPLED:
            continue
        k = len(rows)
        if hits:
            any_passed.append(max(hits))
            counted.append((len(hits), int(sum(hits))))
        if REWARD_MODEL in rows[0]["rewards"]:
            logits.append(sum(row["rewards"][REWARD_MODEL] for row in rows) / k)
        lengths += [row["n_tokens"] for row in rows]
        unfinished += [float(row["finish"] != "stop") for row in rows]
    result: dict[str, Any] = {
        "greedy": statistics.proportion(greedy),
        "pass@1": statistics.mean(passed.get(SAMPLED, [])),
        **{f"pass@{few}": statistics.pass_at(few, counted) for few in _powers(k)},
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


def _powers(k: int) -> list[int]:
    """2, 4, 8, … below k."""
    return [1 << at for at in range(1, k.bit_length()) if 1 << at < k]
