"""The stages, one file and one public function `run(job) -> metrics` each.

A stage knows its config, its input folders and where to write; nothing of rounds or other stages.
"""

from __future__ import annotations

import importlib
from typing import Any

from posttrain.errors import ModelError, RewardError, StageError
from posttrain.job import Job
from posttrain.stages.registry import STAGES


def run_stage(name: str, job: Job) -> dict[str, Any]:
    """Run the stage called `name`; its module is imported only now.

    Raises:
        PosttrainError: whatever the stage raises. Where it failed, or a model or reward is at fault, the message begins
            with the stage's name; what was wrong with a file of prompts or pairs is told by its place alone.
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
        if name == "prompts":  # which is where all that is given is looked at: nothing else ran yet
            raise
        place = {"file": error.file, "line": error.line, "column": error.column, "hint": error.hint, "rule": error.rule}
        raise type(error)(_named(name, error.message), **place) from error


def _named(stage: str, message: str) -> str:
    """The message with the stage's name before it, once. A recipe's section may be its name: watch.reward_model."""
    begins = message.partition(":")[0].rpartition(".")[2]
    return message if begins == stage else f"{stage}: {message}"
