"""The stages: one file each, with one public function `run(job) -> metrics`.

A stage knows its config, its input folders and its output folder; nothing of rounds or other stages.
"""

from __future__ import annotations

import importlib
from typing import Any

from posttrain.errors import ModelError, RewardError, StageError
from posttrain.job import Job
from posttrain.stages.registry import STAGES


def run_stage(name: str, job: Job) -> dict[str, Any]:
    """Runs the stage `name`; imports its module.

    Raises:
        PosttrainError: what the stage raises. The messages of StageError, ModelError and RewardError begin with the
            stage's name; a DataError has the place in the file.
    """
    if name not in STAGES:
        raise KeyError(name)
    try:
        return importlib.import_module(f"posttrain.stages.{name}").run(job)
    except StageError as error:
        named = type(error)(_named(name, str(error)))
        named.__dict__.update(error.__dict__)
        raise named from error
    except (ModelError, RewardError) as error:
        if name == "prompts":  # this stage checks all inputs, before any other runs
            raise
        raise error.replaced(message=_named(name, error.message)) from error


def _named(stage: str, message: str) -> str:
    """The message with the stage's name before it, unless it begins with that or its section (watch.reward_model)."""
    begins = message.partition(":")[0].rpartition(".")[2]
    return message if begins == stage else f"{stage}: {message}"
