"""What each process of a training holds: one, two with DDP, two with FSDP2.

    python benchmarks/ranks.py MODEL [--batch 2] [--length 256] [--steps 3]

The sft stage on all weights of MODEL (a folder), in float32 with activation checkpointing, on rows of about so many
tokens; each way in a process of its own, its ranks forked from it. Held: bytes of weights, gradients and moments of a
rank, the largest that were seen at a step. Peak: the most that a rank's process had in memory (VmHWM: pages that ranks
share count in each), from before the model is loaded to the end of its training.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mfu import write_rows

WAYS: dict[str, dict[str, Any]] = {
    "one process": {},
    "two, DDP": {"processes": 2},
    "two, FSDP2": {"processes": 2, "shard": "fsdp2"},
}


def train(model: Path, folder: Path, way: str, batch: int, length: int, steps: int) -> None:
    """The stage; each rank writes what it held into `folder`."""
    import torch

    from posttrain import load_recipe
    from posttrain.job import Job
    from posttrain.stages import run_stage
    from posttrain.training import run
    from posttrain.training.ranks import rank

    found: dict[str, float] = {}

    def size(tensors: Iterable[Any]) -> int:
        local = (each.to_local() if hasattr(each, "to_local") else each for each in tensors)
        return sum(each.numel() * each.element_size() for each in local)

    def holds(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        weights = list(given["model"].parameters())
        moments = [value for of in given["optimizer"].state.values() for value in of.values() if torch.is_tensor(value)]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for name, tensors in (("weights", weights), ("gradients", gradients), ("moments", moments)):
            found[name] = max(found.get(name, 0.0), size(tensors))

    def ends(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        status = Path("/proc/self/status").read_text()
        found["peak"] = 1024 * float(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
        (folder / f"rank-{rank()}.json").write_text(json.dumps(found))

    watch: Any = run.Watch
    watch.on_pre_optimizer_step, watch.on_step_end, watch.on_train_end = holds, holds, ends
    settings = {"max_length": length, "per_device_train_batch_size": batch, "max_steps": steps}
    settings |= {"logging_steps": steps, "save_steps": 10 * steps, "gradient_accumulation_steps": 1, "bf16": "false"}
    settings["activation_checkpointing"] = "true"
    recipe = load_recipe("quickstart", [f"sft.{name}={value}" for name, value in settings.items()])
    assert recipe.sft
    named = {"dtype": "bfloat16", "lora": None, "attention": "sdpa"}
    config = {"sft": recipe.sft.model_dump(mode="json"), "model": named}
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    began = time.perf_counter()
    inputs = {"model": model, "kept": folder}
    run_stage("sft", Job(config, inputs, folder / "out", folder / "scratch", 0, WAYS[way]))
    (folder / "seconds").write_text(str(time.perf_counter() - began))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        train(given.model.resolve(), given.folder, given.way, given.batch, given.length, given.steps)
        return
    print("| | held by a rank, MB | of one process | peak of a rank, MB | of one process | s |")
    print("| --- " * 6 + "|")
    whole: tuple[float, float] | None = None
    for way in WAYS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_rows(folder, given.length, 4 * given.steps * given.batch * given.length)
            words = [sys.executable, __file__, str(given.model), "--way", way, "--folder", name]
            words += [f"--{key}={getattr(given, key)}" for key in ("batch", "length", "steps")]
            subprocess.run(words, check=True, stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
            ranks = [json.loads(path.read_text()) for path in folder.glob("rank-*.json")]
            held = max(sum(one[key] for key in ("weights", "gradients", "moments")) for one in ranks)
            peak, seconds = max(one["peak"] for one in ranks), float((folder / "seconds").read_text())
        whole = whole or (held, peak)
        print(
            f"| {way} | {held / 1e6:,.1f} | {held / whole[0]:.2f} | {peak / 1e6:,.0f} | {peak / whole[1]:.2f} | "
            f"{seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
