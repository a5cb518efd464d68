"""One step of a trained stage on two rows, with the arguments and the trainer that the stage itself makes."""

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
from accelerate.utils import TorchDynamoPlugin
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, RewardConfig, SFTConfig

from posttrain.config import Dpo, RewardModel, Sft, Trained, trl_fields
from posttrain.data.chat_template import TEXT
from posttrain.job import Job
from posttrain.training.run import OURS, arguments

# What a library says of options that do not fit. Anything else is a mistake of ours, and is raised as it is.
REFUSALS = (
    ImportError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    AssertionError,
    RuntimeError,
    OSError,
)
_COMPILES = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
_KINDS: dict[str, tuple[type[Trained], Any]] = {
    "sft": (Sft, SFTConfig),
    "dpo": (Dpo, DPOConfig),
    "reward_model": (RewardModel, RewardConfig),
}
# One step, of both rows, and nothing on the disk.
_ONE_STEP = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "save_strategy": "no",
    "logging_steps": 1,
}


@dataclass(frozen=True)
class Trial:
    """A stage to be tried. `section` as the recipe has it; `job` has the model's LoRA and the seed."""

    job: Job
    stage: str
    section: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase

    @property
    def parsed(self) -> Trained:
        return _KINDS[self.stage][0].model_validate(self.section)

    @property
    def defaults(self) -> dict[str, Any]:
        """Of each of TRL's fields that the section sets, what it would be if it did not."""
        known = trl_fields.fields(self.parsed.trainer)
        return {name: OURS.get(name, known[name]["default"]) for name in self.parsed.trl}

    @property
    def changed(self) -> dict[str, Any]:
        """TRL's fields that the section sets to what is not their default, in the section's order."""
        return {name: value for name, value in self.parsed.trl.items() if value != self.defaults[name]}


def one_step(trial: Trial, model: Path, options: Mapping[str, Any]) -> Exception | None:
    """Train `model` for a step with these of TRL's fields, all others at their defaults. Returns what was raised.

    Layers that `optim_target_modules` names may be deeper than the stand-in: all are taken for them here, and the
    model's own are asked by `architecture.has_linear`. The model is not compiled, which takes minutes: a sum is.

    Libraries tell one another of options by variables of the environment: they are put back afterwards.
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
        args = arguments(_KINDS[trial.stage][1], section, job, **_ONE_STEP)
        stage = importlib.import_module(f"posttrain.stages.{trial.stage}")
        given = () if trial.stage == "sft" else (section,)
        trainer = stage.trainer(job, *given, args, _rows(trial.stage), trial.tokenizer)
        trainer.train()
    except REFUSALS as error:
        return error
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(scratch, ignore_errors=True)
        gc.collect()
    return None


def _compile_a_sum(options: Mapping[str, Any]) -> None:
    """What the trainer would have compiled the model with, on one sum: whether the machine can, in seconds."""
    backend = options.get("torch_compile_backend") or "inductor"
    plugin = TorchDynamoPlugin(backend=backend, mode=options.get("torch_compile_mode"))  # pyright: ignore[reportArgumentType] # made one
    given = torch.ones(2, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.compile(lambda one: one + 1, **plugin.to_kwargs())(given)
    finally:
        torch._dynamo.reset()


def _rows(stage: str) -> Dataset:
    """Two rows of different lengths, as `sft_rows`, `pair_rows` or `ranked_rows` make them, of tokens of every
    vocabulary."""
    made = []
    for extra in range(2):
        prompt, one, other = [1, 2, 3], [2, 3] + [1] * extra, [3, 1, 2]
        if stage == "sft":
            row = {"input_ids": prompt + one, "labels": [-100] * len(prompt) + one, "score": 1.0}
            length = len(prompt + one)
        elif stage == "dpo":
            row = {"prompt_ids": prompt, "chosen_ids": one, "rejected_ids": other}
            row |= {"chosen_parts": [TEXT] * len(one), "rejected_parts": [TEXT] * len(other)}
            length = len(prompt + one + other)
        else:
            row = {"prompt_ids": prompt, "responses": [one, other], "margin": 0.0}
            length = len(prompt + one + other)
        made.append({**row, "length": length})
    return Dataset.from_list(made)
