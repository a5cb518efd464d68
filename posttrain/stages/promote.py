"""The gate: is the round's policy better than the last promoted one? A paired test on dev, never on held-out.

A prompt's figure is its mean score over K samples by the reward functions. In a recipe without reward functions the
round's reward model scores both policies' answers.
"""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from posttrain.data.tables import SAMPLED, by_prompt
from posttrain.errors import StageError
from posttrain.evaluation import statistics
from posttrain.job import Job
from posttrain.rewards.checks import collapsed, shares
from posttrain.rewards.combine import combine, of_functions
from posttrain.rewards.scoring import Scorers, load_scorers, model_rewards
from posttrain.storage.pieces import Pieces

_PROMPTS = 64  # whose answers a reward model scores before they are kept


def run(job: Job) -> dict[str, Any]:
    """Inputs: candidate, incumbent (evaluate artifacts), reward_model (in recipes without reward functions). Config:
    promote, rewards. Writes decision.json.

    Raises:
        StageError: no reward scores any dev prompt, so nothing can be compared; or the policy has
            collapsed and `promote` is `always`. By any other rule such a policy is not promoted.
    """
    scorers, weights = load_scorers(job)
    functions = of_functions(weights)
    new, old = (
        prompt_figures(job.inputs[role] / "dev.parquet", functions, scorers, Pieces(job.scratch / role))
        for role in ("candidate", "incumbent")
    )
    shared = [prompt for prompt in new if prompt in old]
    if not shared:
        raise StageError("promote: no reward scores any dev prompt; give dev prompts what the rewards read")
    difference = statistics.paired_difference([new[p] for p in shared], [old[p] for p in shared], job.seed)
    fallen = collapsed(*(shares(job.inputs[role] / "dev.parquet") for role in ("candidate", "incumbent")))
    if fallen and job.config["promote"] == "always":
        raise StageError(
            f"promote: the policy has collapsed: {fallen}. The one before is intact, in the run's folder `policy`. "
            "Lower the learning rate or the steps of what trained it, or let the gate leave it out (promote: better)"
        )
    decision = {"rule": job.config["promote"], "promoted": not fallen and decide(job.config["promote"], difference)}
    decision |= {**difference, **({"collapsed": fallen} if fallen else {})}
    (job.out / "decision.json").write_text(json.dumps(decision, indent=1) + "\n", encoding="utf-8")
    return decision


def decide(rule: str, difference: statistics.Figure) -> bool:
    """`better`: the whole 95 % interval of new − old lies above 0. `not-worse`: not all of it lies below."""
    if rule == "always":
        return True
    low, high = difference["ci95"]
    return low > 0 if rule == "better" else high >= 0


def prompt_figures(table: Path, functions: dict[str, float], scorers: Scorers, pieces: Pieces) -> dict[str, float]:
    """{prompt id: mean score of its samples}, for prompts with a score: by the functions, else the reward model.

    `pieces`: where the reward model's scores are kept, to resume from.
    """
    columns = ["prompt_id", "tag", "rewards", "prompt", "completion"]
    groups = (rows for rows in by_prompt(table, columns) if rows[0]["tag"] == SAMPLED)
    model = scorers.reward_model
    if functions or model is None:
        scored = {
            rows[0]["prompt_id"]: statistics.known_mean(combine(row["rewards"], functions) for row in rows)
            for rows in groups
        }
        return {prompt: mean for prompt, mean in scored.items() if mean is not None}

    def mean_scores(some: list[list[dict[str, Any]]]) -> pa.Table:
        means = [statistics.known_mean(model_rewards(rows, model, scorers.dtype)) for rows in some]
        return pa.table({"prompt_id": [rows[0]["prompt_id"] for rows in some], "mean": means})

    found: dict[str, float] = {}
    while some := list(itertools.islice(groups, _PROMPTS)):
        means = pieces.made(f"prompts-{len(found)}", functools.partial(mean_scores, some))
        found |= dict(zip(means["prompt_id"].to_pylist(), means["mean"].to_pylist(), strict=True))
    return found
