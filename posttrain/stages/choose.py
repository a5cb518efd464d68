"""Chooses the average of several models' weights (Llama 3, section 4.1.5), unless one model alone is better on dev.

Policies are compared by the mean score of sampled answers to the dev prompts, as in the gate; reward models by their
accuracy on the pairs held out from the latest preferences.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import StageError
from posttrain.evaluation import statistics
from posttrain.job import Job
from posttrain.rewards.combine import of_functions
from posttrain.rewards.scoring import Scorers, load_scorers, score_table
from posttrain.stages.promote import decide, prompt_figures
from posttrain.stages.reward_model import heldout_pairs, pair_margins
from posttrain.storage.files import read_json
from posttrain.storage.pieces import Pieces
from posttrain.storage.store import MANIFEST

MEAN = "mean"


def run(job: Job) -> dict[str, Any]:
    """Inputs: mean, model_1, model_2, …, of which the first `alone` may be chosen alone; for policies answers_mean,
    answers_1, …, and reward_model in recipes without reward functions; for reward models preferences_N.
    Config: choose (`alone`: a count), and for policies rewards. Writes a model folder.

    Raises:
        StageError: no dev prompt or pair has a score, so nothing can be compared.
    """
    roles = job.numbered("model")
    alone = roles[: job.config["choose"]["alone"]]
    candidates = {MEAN: job.inputs[MEAN], **{role: job.inputs[role] for role in alone}}
    on_pairs = bool(job.numbered("preferences"))
    figures = {
        name: _on_pairs(job, name, path) if on_pairs else _on_dev(job, name.removeprefix("model_"))
        for name, path in candidates.items()
    }
    chosen, difference = choose(figures, job.seed)
    shutil.copytree(candidates[chosen], job.out, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
    compared = {name: statistics.mean(list(values.values())) for name, values in figures.items()}
    accuracy = {"pair_accuracy": statistics.proportion(list(figures[chosen].values()))} if on_pairs else {}
    extra = {**_learned_from(job.inputs[chosen if chosen in alone else roles[0]]), **accuracy}
    return {**extra, "chosen": chosen, "averaged": len(roles), "dev": compared, "mean_minus_best": difference}


def _learned_from(model: Path) -> dict[str, Any]:
    """The number of pairs that the model was trained on, if its manifest has it."""
    metrics = read_json(model / MANIFEST)["metrics"] if (model / MANIFEST).exists() else {}
    return {name: metrics[name] for name in ("pairs", "rows") if name in metrics}


def choose(figures: Mapping[str, Mapping[str, float]], seed: int) -> tuple[str, statistics.Figure]:
    """The name of the chosen candidate, and mean − best with its interval: the mean, unless it is worse than the best
    of the others by the gate's paired test.

    figures: {candidate: {prompt or pair: its figure}}, `mean` among the candidates.

    Raises:
        StageError: the candidates share no prompt or pair.
    """
    shared = set.intersection(*(set(values) for values in figures.values()))
    if not shared:
        raise StageError("choose: nothing on dev scores these models; give dev prompts what the rewards read")
    order = sorted(shared)
    best = max((name for name in figures if name != MEAN), key=lambda name: sum(figures[name][one] for one in order))
    new, old = ([figures[name][one] for one in order] for name in (MEAN, best))
    difference = statistics.paired_difference(new, old, seed)
    return MEAN if decide("not-worse", difference) else best, difference


def _on_dev(job: Job, name: str) -> dict[str, float]:
    scorers, weights = load_scorers(job)
    functions = of_functions(weights)
    answers = job.inputs[f"answers_{name}"] / "answers.parquet"
    table = score_table(job, answers, Scorers(scorers.rewards), job.scratch / f"scored-{name}.parquet")
    return prompt_figures(table, functions, scorers, Pieces(job.scratch / f"figures-{name}"))


def _on_pairs(job: Job, name: str, model: Path) -> dict[str, float]:
    pairs = heldout_pairs(job)
    if not pairs:
        raise StageError(
            "choose: no pair is held out from training to compare reward models on; raise preferences.prompts or "
            "preferences.heldout, or leave reward_model.variants out"
        )
    pieces = Pieces(job.scratch / f"pairs-{name}")
    return {str(at): float(margin > 0) for at, margin in enumerate(pair_margins(pairs, str(model), pieces))}
