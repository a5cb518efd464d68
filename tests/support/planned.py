"""A stage as the scheduler is given it."""

from __future__ import annotations

from posttrain.execution.scheduler import Planned
from support.interrupted import Training


def planned(training: Training) -> Planned:
    stage = {
        "stage": training.name,
        "key": f"{training.name}-0123",
        "input_keys": dict.fromkeys(training.inputs, "outside-0"),
        "inputs": {role: str(path) for role, path in training.inputs.items()},
        "outside": {},
        "config": training.config,
        "runtime": training.config,
        "seed": 0,
    }
    return Planned(stage["key"], 1, stage, frozenset(), False, training.name)
