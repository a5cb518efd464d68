"""Finds the checkpoint to resume from: the newest that is provably complete.

transformers takes the newest folder by name, and resumes with a fresh optimizer when `optimizer.pt` is missing. So each
checkpoint gets a list of its files with their hashes, written last, and only one that matches its list is used.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from posttrain.storage.files import file_hash, fsync, write_durably

SEAL = "posttrain.json"
EPOCH = "epoch.safetensors"  # torch's random state at the start of the epoch that is to go on
# Any of these names will do: of one process, of several ranks, of ranks that each hold a part.
NEEDED = (
    {"trainer_state.json"},
    {"scheduler.pt"},
    {EPOCH},
    {"optimizer.pt", "optimizer_0/.metadata"},
    {"rng_state.pth", "rng_state_0.pth"},
)


def seal(checkpoint: Path) -> None:
    """Fsyncs the checkpoint, then writes the list of its files and hashes."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    for path in files:
        fsync(path)
    hashes = {str(path.relative_to(checkpoint)): file_hash(path) for path in files}
    write_durably(checkpoint / SEAL, json.dumps(hashes))
    fsync(checkpoint.parent)


def is_whole(checkpoint: Path) -> bool:
    try:
        hashes = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        return all(names & hashes.keys() for names in NEEDED) and all(
            file_hash(checkpoint / name) == expected for name, expected in hashes.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, by optimizer step, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def latest_whole(folder: Path) -> Path | None:
    """The newest complete checkpoint, None if there is none. Incomplete ones are removed, so that nothing else resumes
    from them."""
    for checkpoint in newest_first(folder):
        if is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None
