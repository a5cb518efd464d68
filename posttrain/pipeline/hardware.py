"""Puts what the machine is fast in in the place of each `auto` of a recipe, before any key is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.config.training import TRAINED
from posttrain.errors import InputError
from posttrain.execution.artifact import Artifact, StageCall, Stages
from posttrain.recipe.recipe import Recipe
from posttrain.system import gpu


def settled(recipe: Recipe, runner: Stages, base: Artifact) -> Recipe:
    """The recipe with every `auto` resolved, by the stage `hardware` if there is any: waits for it. A dry run, which
    measures nothing, gets float32 and sdpa. The engine's type is a float type then, also where the recipe has int8.

    Raises:
        InputError: int8 on a machine with a GPU.
    """
    if recipe.engine.dtype == "int8" and gpu():
        raise InputError("engine.dtype: int8 is for CPUs", hint="set engine.dtype: auto", rule="engine-int8")
    engine_is_open = recipe.engine.server is None and recipe.engine.dtype in ("auto", "int8")
    trained = {name: section for name in TRAINED if (section := getattr(recipe, name))}
    open_sections = {name: section for name, section in trained.items() if "bf16" not in section.trl}
    watched = recipe.watch.reward_model if recipe.watch else None
    watch_is_open = watched is not None and "bf16" not in watched.trl
    attention_is_open = recipe.model.attention == "auto" and bool(trained or watched)
    if not (engine_is_open or open_sections or watch_is_open or attention_is_open):
        return recipe
    made = runner.submit(StageCall("hardware", config={}, inputs={"model": base}, seed=0))
    found = runner.metrics(made)
    bf16 = {"bf16": _name(found, "training", "float32") == "bfloat16"}
    changes: dict[str, Any] = {name: section.model_copy(update=bf16) for name, section in open_sections.items()}
    if recipe.watch and watched and watch_is_open:
        changes["watch"] = recipe.watch.model_copy(update={"reward_model": watched.model_copy(update=bf16)})
    if engine_is_open:
        dtype = _name(found, "engine", "float32")
        changes["engine"] = recipe.engine.model_copy(update={"dtype": dtype})
    if attention_is_open:
        attention = _name(found, "attention", "sdpa")
        changes["model"] = recipe.model.model_copy(update={"attention": attention})
    return recipe.model_copy(update=changes)


def _name(found: Mapping[str, Any], what: str, otherwise: str) -> str:
    return found.get(what, {}).get("name", otherwise)
