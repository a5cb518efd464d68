"""Which checkpoint to go on from: the newest that is provably whole.

transformers picks the newest folder by name, and goes on with a fresh optimizer when `optimizer.pt` is missing. So each
checkpoint gets a list of its files with their hashes, written last, and only one that agrees with it is used.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.store import file_hash, write_durably

SEAL = "posttrain.json"
NEEDED = {"trainer_state.json", "optimizer.pt", "scheduler.pt"}


class SealCheckpoints(TrainerCallback):
    """Writes the seal when the trainer has saved a checkpoint; there is none after the last step, when the model is."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if state.is_world_process_zero and args.output_dir is not None:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def seal(checkpoint: Path) -> None:
    hashes = {
        str(path.relative_to(checkpoint)): file_hash(path) for path in sorted(checkpoint.rglob("*")) if path.is_file()
    }
    write_durably(checkpoint / SEAL, json.dumps(hashes))


def is_whole(checkpoint: Path) -> bool:
    try:
        hashes = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        return hashes.keys() >= NEEDED and all(
            file_hash(checkpoint / name) == expected for name, expected in hashes.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def latest_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint; those that are not whole are removed, so that no one else picks them."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in checkpoints:
        if is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None
