"""Averages the weights of several models: see `posttrain.training.averaging`."""

from __future__ import annotations

from typing import Any

from posttrain.job import Job
from posttrain.training.averaging import average


def run(job: Job) -> dict[str, Any]:
    """Inputs: model_1, model_2, … Writes a model folder."""
    folders = [job.inputs[name] for name in job.numbered("model")]
    average(folders, job.out)
    return {"models": len(folders)}
