"""What this machine and its Python are: what a report of a bug needs, and nothing that is secret."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from posttrain.launch import versions

# Variables that decide how a run goes. Their values are shown, so none that may hold a token or a password is here.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRANSFORMERS_OFFLINE",
)
FURTHER = ("huggingface_hub", "tokenizers", "numpy", "pyarrow", "pydantic", "bitsandbytes", "math-verify")


def describe(folder: Path) -> dict[str, Any]:
    """Versions, processor, memory and devices; the disk is that of `folder`. Imports torch; sizes in bytes."""
    import psutil
    import torch

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(folder)
    return {
        "platform": platform.platform(),
        "executable": sys.executable,
        "versions": versions(FURTHER),
        "cpu": {
            "name": _processor(),
            "cores": os.cpu_count(),
            "usable": cores(),
            "torch_threads": torch.get_num_threads(),
        },
        "memory": {"total": memory.total, "available": memory.available},
        "disk": {"folder": str(folder.resolve()), "total": disk.total, "free": disk.free},
        "devices": [_device(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that may be used, asked without torch."""
    return Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def _device(index: int) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(index)
    return {"name": found.name, "memory": found.total_memory, "capability": f"{found.major}.{found.minor}"}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
