"""Measures which float types and which attention are fast here, once a run: what `auto` in a recipe resolves to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.engines.precision import linear_shapes, sampling_dtype
from posttrain.job import Job
from posttrain.system import device, processor
from posttrain.training.precision import Heads, training_dtype


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, of which only the config is read. Writes nothing: the choices are its metrics.

    It is in the key of no machine: a run that goes on elsewhere keeps its types, and so its finished stages.
    """
    config = AutoConfig.from_pretrained(job.inputs["model"])
    with torch.device("meta"):  # shapes alone
        shapes = linear_shapes(AutoModelForCausalLM.from_config(config))
    where = device()
    dtype, attention = training_dtype(shapes, Heads.of(config), where)
    return {
        "processor": torch.cuda.get_device_name() if where == "cuda" else processor(),
        "engine": asdict(sampling_dtype(shapes, where)),
        "training": asdict(dtype),
        "attention": asdict(attention),
    }
