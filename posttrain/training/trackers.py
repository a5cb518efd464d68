"""Sends a trainer's logs to the recipe's `report_to`, by transformers' own callbacks."""

from __future__ import annotations

import os
from pathlib import Path

from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from posttrain.job import Job
from posttrain.storage.logs import FOLDER, at_home


def trackers(job: Job, args: TrainingArguments) -> list[TrainerCallback]:
    """One callback per tracker. The runtime's `report`: to (their names), project, name. They write below RUN/logs.

    A training that resumes or starts again appends to what it has sent before.
    """
    report = job.runtime.get("report")
    if report is None:
        return []
    args.run_name, args.project = report["name"], report["project"]
    folder = job.scratch.parents[2] / FOLDER  # scratch is RUN/work/KEY/scratch
    at_home(folder)
    os.environ.setdefault("WANDB_PROJECT", report["project"])
    return [_callback(backend, folder / report["name"]) for backend in report["to"]]


def _callback(backend: str, folder: Path) -> TrainerCallback:
    if backend == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))
    return TrackioCallback() if backend == "trackio" else WandbCallback()
