"""The command line, as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Nothing is measured, so that two runs have the same bits however busy the machine is.
TYPES = {
    "engine.dtype": "float32",
    "model.attention": "sdpa",
    "reward_model.bf16": "false",
    "sft.bf16": "false",
    "dpo.bf16": "false",
}
REDUCED = [
    *(f"{key}={value}" for key, value in TYPES.items()),
    "prompts.train.rows=:240",
    "prompts.dev.rows=:48",
    "prompts.heldout.rows=:48",
    "preferences.prompts=80",
    "samples.prompts=80",
    "samples.k=4",
    "pairs.prompts=60",
    "pairs.k=4",
    "evaluate.k=2",
    "sft.num_train_epochs=1",
    "reward_model.max_steps=8",
    "promote=always",
]


def command(run: Path, n: int, *overrides: str) -> list[str]:
    arguments = [sys.executable, "-m", "posttrain", "round", "--n", str(n), "--run", str(run)]
    for override in (*REDUCED, *overrides):
        arguments += ["--set", override]
    return arguments


def posttrain(run: Path, n: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(run, n, *overrides), capture_output=True, text=True, timeout=600)
