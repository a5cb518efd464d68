"""A training that is killed at a step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.config import Dpo, RewardModel, Sft
from posttrain.config.kto import Kto
from posttrain.data.tables import MESSAGES, PAIRS
from posttrain.job import Job
from posttrain.stages import run_stage
from posttrain.storage.checkpoint_seals import newest_first
from posttrain.storage.files import file_hash

BASE = Path(__file__).parents[2] / "data" / "tiny-base"

ROWS, BATCH, SAVE_STEPS = 16, 4, 2

STEPS = 2 * ROWS // BATCH  # two epochs: the order of the second one's rows must come out the same

FIELDS = {"per_device_train_batch_size": BATCH, "num_train_epochs": 2, "learning_rate": 1e-3, "save_steps": SAVE_STEPS}


class Killed(BaseException):
    pass


def says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pairs(folder: Path) -> Path:
    """Pairs of many lengths, since rows are grouped by length."""
    rows = [
        {
            "prompt_id": str(n),
            "prompt": says("user", f"{n} + {n}? " * (1 + n % 5)),
            "chosen": says("assistant", f"Answer: {2 * n}"),
            "rejected": says("assistant", "I do not know. " * (1 + n % 3)),
            "level": "better",
            "split": "train" if n < ROWS else "heldout",
            "source": "pairs",
        }
        for n in range(ROWS + 6)
    ]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), folder / "pairs.parquet")
    return folder


def kept(folder: Path) -> Path:
    schema = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("sample_index", pa.int32()),
            ("prompt", MESSAGES),
            ("completion", MESSAGES),
            ("score", pa.float64()),
        ]
    )
    rows = [
        {
            "prompt_id": str(n),
            "sample_index": 0,
            "prompt": says("user", f"{n} + {n}? " * (1 + n % 5)),
            "completion": says("assistant", f"Answer: {2 * n}"),
            "score": 1.0,
        }
        for n in range(ROWS)
    ]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "kept.parquet")
    return folder


def scored(folder: Path) -> Path:
    """Every second answer is good."""
    table = pq.read_table(kept(folder) / "kept.parquet")
    scores = pa.array([float(n % 2) for n in range(ROWS)])
    table = table.drop_columns("score").append_column("score", scores)
    pq.write_table(table.append_column("rewards", pa.array(["{}"] * ROWS)), folder / "scored.parquet")
    return folder


SECTIONS: dict[str, Callable[..., Any]] = {"sft": Sft, "reward_model": RewardModel, "dpo": Dpo, "kto": Kto}
# What each learns from, and in which role it is given that.
TABLES = {"sft": (kept, "kept"), "reward_model": (pairs, "preferences_1"), "dpo": (pairs, "pairs")}
TABLES["kto"] = (scored, "samples")


class Training:
    """One trained stage in its folders. `go` runs it, until a step at which it dies where one is said."""

    def __init__(self, name: str, folder: Path, **fields: Any) -> None:
        self.name, self.folder = name, folder
        section = SECTIONS[name](**{**FIELDS, **fields})
        self.config = {name: section.model_dump(mode="json"), "model": {"dtype": "float32", "lora": None}}
        made, role = TABLES[name]
        self.inputs = {"model": BASE, role: made(folder / "in")}
        self.steps: list[int] = []  # every step that was done, in every try

    def go(self, dies_after: int | None = None, runtime: dict[str, Any] | None = None) -> dict[str, Any]:
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        for name in ("out", "scratch"):
            (self.folder / name).mkdir(exist_ok=True)

        said: list[int] = []

        def progress(done: int, total: int, unit: str) -> None:
            if unit != "steps":
                return
            said.append(done)
            if len(said) == 1:  # where it begins, before any step
                return
            self.steps.append(done)
            if done == dies_after:
                raise Killed

        job = Job(
            self.config,
            self.inputs,
            self.folder / "out",
            self.folder / "scratch",
            0,
            runtime or {},
            progress=progress,
        )
        return run_stage(self.name, job)

    def bits(self) -> str:
        return file_hash(self.folder / "out" / "model.safetensors")

    def checkpoints(self) -> list[Path]:
        return newest_first(self.folder / "scratch" / "checkpoints")
