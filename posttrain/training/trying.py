"""Runs one optimizer step of a trained stage on two rows, with the stage's own arguments and trainer."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import trl
from accelerate.utils import TorchDynamoPlugin
from transformers import PreTrainedTokenizerBase

from posttrain.config import Trained, trl_fields
from posttrain.config.training import TRAINED
from posttrain.job import Job
from posttrain.system import device
from posttrain.training import stand_in
from posttrain.training.run import OURS, arguments

# What a library says of options that do not fit. Anything else is a mistake of ours, and is raised as it is.
REFUSALS = (*stand_in.REFUSALS, OSError)
_COMPILES = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
# One step, of both rows, and nothing on the disk.
_ONE_STEP = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "save_strategy": "no",
    "logging_steps": 1,
    "num_generations": 2,
    "max_completion_length": 2,
}


@dataclass(frozen=True)
class Trial:
    """A trained stage to try. `section`: as in the recipe; `job` has the model's LoRA and the seed."""

    job: Job
    stage: str
    section: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase

    @property
    def parsed(self) -> Trained:
        return TRAINED[self.stage].model_validate(self.section)

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the TRL fields that the section sets."""
        known = trl_fields.fields(self.parsed.trl_name)
        return {name: OURS.get(name, known[name]["default"]) for name in self.parsed.trl}

    @property
    def changed(self) -> dict[str, Any]:
        """The TRL fields that the section sets to other than their defaults, in the section's order."""
        return {name: value for name, value in self.parsed.trl.items() if value != self.defaults[name]}


def one_step(trial: Trial, model: Path, options: Mapping[str, Any]) -> Exception | None:
    """Trains `model` for one step with these TRL fields, all others at their defaults. Returns the exception, or None.

    Layers that `optim_target_modules` names may be missing in the stand-in: all its linear layers are used here, and
    the model's own are checked by `architecture.has_linear`. To save minutes only a sum is compiled, not the model.

    Libraries pass options to one another by environment variables: these are restored afterwards.
    """
    before, scratch = dict(os.environ), trial.job.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    job = replace(trial.job, inputs={"model": model})
    small = {name: value for name, value in options.items() if name not in _COMPILES}
    if small.get("optim_target_modules"):
        small["optim_target_modules"] = "all-linear"
    section = trial.parsed.model_copy(update={**trial.defaults, **small})
    try:
        if any(options.get(name) for name in _COMPILES):
            _compile_a_sum(options)
        args = arguments(getattr(trl, section.trl_class), section, job, **_ONE_STEP)
        stage = importlib.import_module(f"posttrain.stages.{trial.stage}")
        stage.trainer(job, section, args, stage.examples(), trial.tokenizer).train()
    except REFUSALS as error:
        return error
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(scratch, ignore_errors=True)
        gc.collect()
    return None


def _compile_a_sum(options: Mapping[str, Any]) -> None:
    """Compiles one sum with the trainer's compile options: shows in seconds whether this machine can compile."""
    backend = options.get("torch_compile_backend") or "inductor"
    plugin = TorchDynamoPlugin(backend=backend, mode=options.get("torch_compile_mode"))  # pyright: ignore[reportArgumentType] # made one
    given = torch.ones(2, device=device())
    try:
        torch.compile(lambda one: one + 1, **plugin.to_kwargs())(given)
    finally:
        torch._dynamo.reset()
