"""Runs one optimizer step of every training of the recipe, in small, so that wrong options fail before any sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer

from posttrain.config.problems import said
from posttrain.errors import RecipeError
from posttrain.job import Job
from posttrain.models.structure import first_line
from posttrain.training.architecture import has_linear
from posttrain.training.blame import as_recipe_error, to_blame
from posttrain.training.stand_in import stand_ins
from posttrain.training.trying import Trial, one_step


def run(job: Job) -> dict[str, Any]:
    """Inputs: model. Config: trainings (`stage`, `section`, and the section's `key` in the recipe), model, versions,
    gpu. Runtime: places: lines of keys in the recipe. Writes nothing.

    Uses two rows and the model's type with small random weights, so faults of memory, of the data or of the real
    weights are not found. If a model type cannot be made small, or fails in small whatever the options, a small Llama
    is used instead, and `fallback` says so.

    Raises:
        RecipeError: this machine or a library refuses an option; with its key and line.
    """
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    small = dataclasses.replace(job, config=_with_any_adapters(job.config))
    models, cannot = stand_ins(job.inputs["model"], len(tokenizer), job.scratch / "stand-ins")
    tried: dict[str, str] = {}
    notes: list[str] = []
    for number, training in enumerate(job.config["trainings"]):
        key, scratch = training["key"], job.scratch / str(number)
        own = dataclasses.replace(small, scratch=scratch, out=scratch / "out")
        trial = Trial(own, training["stage"], training["section"], tokenizer)
        error = _unknown_layers(key, trial, job)
        if error:
            raise _placed(error, job, training)
        unlike = [cannot] if cannot else []
        for name, model in models:
            failure = one_step(trial, model, trial.changed)
            if failure is None:
                tried[key] = name
                break
            found = to_blame(trial, model, failure)
            if found:
                raise _placed(as_recipe_error(key, trial, *found), job, training)
            unlike.append(f"{name} in small fails whatever the options ({first_line(failure)})")
        if unlike:
            how = f"tried on {tried[key]}" if key in tried else "not tried"
            notes.append(f"{key} was {how}: {'; '.join(unlike)}. What this type refuses shows once {key} begins")
        job.progress(number + 1, len(job.config["trainings"]), "trainings")
    return {"trainings": len(job.config["trainings"]), "tried_as": tried, **({"fallback": notes} if notes else {})}


def _unknown_layers(key: str, trial: Trial, job: Job) -> RecipeError | None:
    """Checks the layer names for optimizers that project gradients against the model itself: the stand-in may lack
    them."""
    options = trial.changed
    names = options.get("optim_target_modules")
    if not str(options.get("optim")).startswith(("galore", "apollo")) or not isinstance(names, str | list):
        return None
    if isinstance(names, str) and names.replace("_", "-") == "all-linear":
        return None
    lora = job.config["model"].get("lora")
    if has_linear(job.inputs["model"], names, lora, reward_model=trial.stage in ("reward_model", "step_reward")):
        return None
    return RecipeError(
        f"{key}.optim_target_modules: {said(names)} names no linear layer of this model",
        hint="a list of parts of names, as in [attn, mlp]; a regular expression of whole names; or all-linear",
        rule="training-optimizer",
    )


def _with_any_adapters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with adapters on every linear layer: the recipe's `target_modules` may name layers that the stand-in
    lacks; they were checked against the model's own config before (`training.architecture`)."""
    model = config["model"]
    lora = model.get("lora")
    return {**config, "model": {**model, "lora": {**lora, "target_modules": "all-linear"} if lora else None}}


def _placed(error: RecipeError, job: Job, training: dict[str, Any]) -> RecipeError:
    """The error with the line of its key, or of the nearest key above it that is in the recipe."""
    keys, places = error.message.partition(":")[0].split("."), job.runtime.get("places", {})
    inherited = f"{training['stage']}.{keys[-1]}"  # of a variant, or of the watch's model
    above = [".".join(keys[:count]) for count in range(len(keys), 0, -1)]
    for name in [above[0], inherited, *above[1:]]:
        if name in places:
            file, line, column = places[name]
            return error.replaced(file=file, line=line, column=column)
    return error
