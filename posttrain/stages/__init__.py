"""The stages, one file and one public function `run(job) -> metrics` each.

A stage knows its config, its input folders and where to write; nothing of rounds or other stages.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError, RewardError, StageError

STAGES = {
    # name: version, raised when the same inputs would give another result
    "prompts": 2,
    "trial": 1,
    "preferences": 5,
    "reward_model": 3,
    "difficulty": 3,
    "samples": 3,
    "annotate": 1,
    "scores": 3,
    "quality_classifier": 1,
    "filters": 1,
    "diversity": 1,
    "average": 1,
    "choose": 3,
    "sft": 3,
    "pairs": 4,
    "dpo": 3,
    "evaluate": 5,
    "heldout": 4,
    "promote": 1,
    "watch": 4,
}


def no_progress(done: int, total: int, unit: str) -> None:
    """The progress of a stage that nobody watches."""


@dataclass(frozen=True)
class Job:
    """What a stage is given.

    `config` is plain JSON and decides the result; `settings` say where outside files lie and how to run, and do not
    decide it. `inputs` are whole folders; the payload goes to `out`; what is in `scratch` survives a kill. `workers`
    is how many processes or threads it may use.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    progress: Callable[[int, int, str], None] = field(default=no_progress)


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
        told = type(error)(_named(name, str(error)))
        told.__dict__.update(error.__dict__)
        raise told from error
    except (ModelError, RewardError) as error:
        if name == "prompts":  # which is where all that is given is looked at: nothing else ran yet
            raise
        place = {"file": error.file, "line": error.line, "column": error.column, "hint": error.hint, "rule": error.rule}
        raise type(error)(_named(name, error.message), **place) from error


def _named(stage: str, message: str) -> str:
    """The message with the stage's name before it, once. A recipe's section may be its name: watch.reward_model."""
    begins = message.partition(":")[0].rpartition(".")[2]
    return message if begins == stage else f"{stage}: {message}"
