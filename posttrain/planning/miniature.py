"""How small the round is that a probe runs: few prompts, few rows, few steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.config.trained import BATCH
from posttrain.config.training import TRAINED
from posttrain.recipe.recipe import Recipe

# Of a training: with the recipe's own batch four, with a smaller one of a large model two. The first warms up and does
# not count: in it memory is touched for the first time, which can take longer than the step.
STEPS, FEW_STEPS = 4, 2
# Completions that are sampled: as many as the engine has under way at once on a CPU, of a large model as many as it
# makes in so many seconds at the rate of the machine's products (two operations a parameter and token).
MOST, FEWEST = 1024, 32
SAMPLING_SECONDS = 6
LEAST_PROMPTS = 4
# Rows of a training step: what so many seconds are enough for (six operations a parameter and token, of two answers).
STEP_SECONDS = 4
# Of `evaluate`, what the built-in engine computes to be reported, and what stands for none of it. Its time follows from
# that of answers.
REPORTED: Mapping[str, Any] = {"benchmarks": [], "label_variants": None, "memorisation": None, "forecast": None}
WIDE = 128  # rows of a wide step, which fewer completions do not fill


@dataclass(frozen=True)
class Size:
    """How much a probe does: completions that are sampled, and rows of a training step (None: the recipe's batch)."""

    completions: int
    rows: int | None = None


def size(parameters: float, longest: int, rate: float) -> Size:
    """The size of a probe. `longest`: most tokens of an answer; `rate`: operations a second of this machine."""
    completions = int(SAMPLING_SECONDS * rate / (2 * parameters * longest))
    rows = int(STEP_SECONDS * rate / (6 * parameters * 2 * longest))
    return Size(max(FEWEST, min(MOST, completions)), max(1, rows))


def overrides(recipe: Recipe, size: Size) -> list[str]:
    """The overrides (`--set`) that make a round of the recipe small."""
    prompts = max(LEAST_PROMPTS, size.completions // recipe.samples.k)
    changes = [
        "promote=always",
        "average_rounds=1",
        "watch=null",
        f"samples.prompts={prompts}",
    ]
    if prompts * recipe.samples.k < WIDE and recipe.engine.server is None:  # for two processes
        answers = math.ceil(prompts / 2) * recipe.samples.k
        changes.append(f"engine.shard_tokens={answers * recipe.samples.max_new_tokens * 3 // 2}")
    asked = [name for name in REPORTED if getattr(recipe.evaluate, name)]
    changes += [f"evaluate.{name}={json.dumps(REPORTED[name])}" for name in asked]
    if recipe.samples.difficulty:
        changes.append("samples.difficulty=null")
    if recipe.preferences and recipe.preferences.prompts != 0:
        changes.append(f"preferences.prompts={prompts}")
    if recipe.pairs:
        changes.append(f"pairs.prompts={prompts}")
    for name in TRAINED:
        section = getattr(recipe, name)
        if section is None:
            continue
        micro, accumulated = (section.trl[key] for key in BATCH)
        if size.rows is None or size.rows >= micro * accumulated:
            changes.append(f"{name}.max_steps={STEPS}")
        else:
            rows = max(1, size.rows // section.fewest) * section.fewest
            most = max(count for count in range(1, min(micro, rows) + 1) if rows % count == 0)
            changes.append(f"{name}.max_steps={FEW_STEPS}")
            changes += [f"{name}.{BATCH[0]}={most}", f"{name}.{BATCH[1]}={rows // most}"]
        if section.variants:
            changes.append(f"{name}.variants=[]")
    if recipe.online:
        changes.append("online.pass_rate=[0, 1]")  # of the few prompts, those of any
    return changes + _without_search(recipe)  # after the trainings' own, which would bring a section back


def _without_search(recipe: Recipe) -> list[str]:
    """What is looked for where no sample is right is not measured: its time follows from that of answers. Nor are
    labels of steps, of which few prompts may have none."""
    there = [name for name in ("search", "correction") if getattr(recipe, name)]
    changes = [f"{name}=null" for name in there]
    if recipe.step_reward and not (recipe.step_scores and recipe.step_scores.by == "step_reward"):
        changes.append("step_reward=null")
    if recipe.dpo and {*there} & {*recipe.dpo.pairs_from}:
        sources = [name for name in recipe.dpo.pairs_from if name not in there] or ["samples"]
        changes.append(f"dpo.pairs_from=[{', '.join(sources)}]")
    return changes
