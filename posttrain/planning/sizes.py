"""What models and tables take of memory and disk, from their sizes. Pure; imports nothing of the loop.

Lower bounds on purpose: who is stopped by them would have failed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRAINING = 4  # weights, gradients and two moments, in float32
FLOAT = 4  # bytes
ADAPTER = 0.01  # of the parameters, about, where LoRA trains
CHECKPOINTS = 3  # the newest two, and the one that is being written
TOKEN = 1.0  # bytes of a token in a compressed table of samples: 1.1 to 1.5 in those of the quickstart
COPIES = 2  # of a table: shards, and what they are joined into


def parameters(size: int) -> float:
    """About how many: from the size of the weights, most of which are in 16 bits but for the smallest models'."""
    return size / (4 if size < 2e9 else 2)


def counted(folder: Path) -> float:
    """How many parameters a model folder holds, by the headers of its safetensors; about, where these are not read."""
    files = sorted(folder.glob("*.safetensors"))
    try:
        return float(sum(_in_header(file) for file in files))
    except (OSError, ValueError, AttributeError, TypeError):
        return parameters(sum(file.stat().st_size for file in files))


def _in_header(file: Path) -> int:
    """The format: 8 bytes, the header's length, little-endian; then the header, JSON with the shape of each tensor."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > file.stat().st_size:
            raise ValueError("no header")
        header = json.loads(stream.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for length in tensor["shape"]:
                count *= length
            total += count
    return total


def training_memory(count: float, model: Mapping[str, Any]) -> float:
    """Bytes of a training of so many parameters: what `model` of its config says of LoRA. Activations come on top."""
    lora = model.get("lora")
    if not lora:
        return FLOAT * count * TRAINING
    return count * (0.5 if lora.get("load_in_4bit") else FLOAT) + FLOAT * count * ADAPTER * TRAINING


def training_disk(count: float, size: int, model: Mapping[str, Any]) -> float:
    """Bytes that a training writes: checkpoints of weights and two moments in float32, and a model of `size` bytes."""
    trained = count * (ADAPTER if model.get("lora") else 1)
    return CHECKPOINTS * 3 * FLOAT * trained + size
