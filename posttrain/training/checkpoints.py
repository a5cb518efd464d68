"""Checkpoints from which a training resumes bit by bit.

transformers does not save the random state of an epoch's start, from which the order of rows was drawn: a training
resumed in its second epoch would see the rows in another order. Resumed after its last step, it would do one more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.storage.checkpoint_seals import EPOCH, seal
from posttrain.training.ranks import barrier, of_first

SOON = "POSTTRAIN_SOON"  # names the file that a job's script makes when its time is nearly up


class Checkpoints(TrainerCallback):
    """Also saves a checkpoint every `minutes`, logs with each, and seals what the trainer saved. None is saved after
    the last step, when the model itself is saved.

    resumed: the checkpoint that the training resumes from. minutes: None for checkpoints by steps alone.
    """

    def __init__(self, resumed: Path | None = None, minutes: float | None = None) -> None:
        self._epoch_began = load_file(resumed / EPOCH)["torch"] if resumed else None
        self._resumed = resumed is not None
        self._minutes, self._last = minutes, time.monotonic()
        self.stopped = False
        """Whether the training ended early, as its job's time is nearly up."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        if self._resumed and self._epoch_began is not None:
            torch.set_rng_state(self._epoch_began)
            self._resumed = False
        self._epoch_began = torch.get_rng_state()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if SOON in os.environ and of_first(Path(os.environ[SOON]).exists()):
            self.stopped = control.should_save = control.should_training_stop = True
        if self._minutes is not None and time.monotonic() - self._last >= 60 * self._minutes:
            control.should_save = True
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True  # the trainer forgets what it has not logged when it is resumed
        if state.global_step >= state.max_steps:
            control.should_save = self.stopped = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self._last = time.monotonic()
        barrier()  # each rank has written its random state
        if state.is_world_process_zero and args.output_dir is not None:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            at_its_end = float(state.epoch or 0).is_integer()  # then the next one begins with what is now
            began = torch.get_rng_state() if at_its_end else self._epoch_began
            assert began is not None
            save_file({"torch": began}, checkpoint / EPOCH)
            seal(checkpoint)


def mean_loss(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean training loss over all steps, from the log, each entry of which is a mean since the previous one.

    The trainer's own figure leaves out the steps before a resume.
    """
    total, before = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - before)
            before = entry["step"]
    return total / before if before else None
