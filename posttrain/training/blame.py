"""Finds the option that makes one optimizer step of a training fail, and explains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.config.problems import said
from posttrain.errors import RecipeError
from posttrain.training.trying import Trial, one_step

_ABSENT = ("not installed", "pip install", "Please install", "failed to import")  # where it is no ImportError


def to_blame(trial: Trial, model: Path, failure: Exception) -> tuple[str, Exception] | None:
    """The option without which the step succeeds, and the exception with it. If several are wrong: the first with which
    the step fails as they are added one by one. None: no option is to blame.
    """
    if one_step(trial, model, {}) is not None:
        return None
    options = trial.changed
    for name in options:
        if one_step(trial, model, {key: value for key, value in options.items() if key != name}) is None:
            return name, failure
    added: dict[str, Any] = {}
    for name, value in options.items():
        added[name] = value
        raised = one_step(trial, model, added)
        if raised is not None:
            return name, raised
    return None  # it failed once and not again


def as_recipe_error(where: str, trial: Trial, name: str, raised: Exception) -> RecipeError:
    """The error for the option `name` of the section `where`; its rule and hint depend on the kind of option."""
    key, value = f"{where}.{name}", said(trial.changed[name])
    why = " ".join(str(raised).split())
    quoted = f"({type(raised).__name__}: {why[:300]})"
    if isinstance(raised, ImportError) or any(said_so in why for said_so in _ABSENT):
        return RecipeError(
            f"{key}: {value} needs a package that is not installed here {quoted}",
            hint=f"install the package that it names, or leave {key} out",
            rule="training-package-absent",
        )
    if name.startswith("lr_scheduler"):
        return RecipeError(
            f"{key}: this scheduler cannot be made from {value} {quoted}",
            hint=f"its arguments are {where}.lr_scheduler_kwargs; schedulers that need an evaluation cannot be used; "
            "`cosine`, `linear` and `constant_with_warmup` need no arguments",
            rule="training-scheduler",
        )
    if name.startswith(("optim", "adam_")):
        return RecipeError(
            f"{key}: no optimizer can be made from {value} {quoted}",
            hint=f"see {where}.optim, optim_args and optim_target_modules; `adamw_torch` needs no arguments",
            rule="training-optimizer",
        )
    if name.startswith("dataloader_"):
        return RecipeError(
            f"{key}: the rows cannot be loaded with {value} {quoted}",
            hint=f"options of workers need {where}.dataloader_num_workers of 1 or more; or leave {key} out",
            rule="training-data-loader",
        )
    if name in ("tf32", "bf16", "torch_compile", "torch_compile_backend", "torch_compile_mode"):
        return RecipeError(
            f"{key}: this machine cannot do {value} {quoted}",
            hint=f"leave {key} out, or run on a machine that can",
            rule="training-machine",
        )
    if name.startswith(("fsdp", "ddp", "activation_", "gradient_checkpointing", "torch_empty_cache")):
        return RecipeError(
            f"{key}: {value} cannot save memory here {quoted}",
            hint=f"leave {key} out: offloading needs a GPU, and sharding is `compute.shard: fsdp2`",
            rule="training-memory-option",
        )
    return RecipeError(
        f"{key}: a step of {trial.stage} fails with {value}, and does not without {quoted}",
        hint=f"leave {key} out, or give it another value",
        rule="training-step-fails",
    )
