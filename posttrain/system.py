"""This machine and its Python: versions, devices, memory. Nothing that is secret."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Variables that decide how a run goes. Their values are shown, so none that may hold a token or a password is here.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "GOMP_SPINCOUNT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRANSFORMERS_OFFLINE",
)
# Below this many parameters a second thread costs more than it gives (and on a busy machine, many times more).
SMALL_MODEL = 5_000_000
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
            "name": processor(),
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


def bytes_in_words(size: float) -> str:
    """In powers of 1000, as disks and the Hub count: 700 B, 3.6 MB, 1.4 GB."""
    unit = "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that may be used, asked without torch."""
    return Path("/dev/nvidia0").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. They are counted, not touched: who has
    used one can fork no process that does (posttrain.execution.preload tells torch to ask the driver alone)."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


def gpu_memory() -> int | None:
    """Bytes that are free on the GPU that is used, asked of its driver without torch; None if it does not say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    command += [f"--id={visible}"] if visible else []
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return int(said.split()[0]) << 20  # in MiB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _device(index: int) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(index)
    return {"name": found.name, "memory": found.total_memory, "capability": f"{found.major}.{found.minor}"}


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(further: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python, of the libraries that decide a stage's bits, and of `further` ones that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("posttrain", "torch", "transformers", "trl", "peft", "datasets", "accelerate", *further):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def die_with_parent() -> None:
    """Ends this process when its parent dies, so that nothing writes into a run that another command has begun."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def one_thread_after_fork() -> None:
    """Lets torch compute on one thread in a process that was forked, and has it make its pool of threads anew: else
    threads that load weights seem to do so at the same time, and one failed ("Invalid thread pool!", seen once)."""
    import torch

    torch.set_num_threads(1)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def ran_out(error: BaseException) -> bool:
    """Whether this exception is torch's for memory that ran out: its own class on a GPU, a plain one on a CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def give_back() -> None:
    """Returns free memory to the system. Does nothing without glibc."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def keep_memory() -> None:
    """Lets glibc reuse large blocks instead of giving each back to the system, which faults every page in anew.

    For the whole process; it may then hold its peak memory until it ends. Nothing happens without glibc.
    """
    _mallopt(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1, top_pad=64 << 20)


def return_memory() -> None:
    """Makes glibc give each block of a megabyte or more back to the system as it is freed: slower, and the process
    holds no more than it uses. For the whole process; nothing happens without glibc."""
    _mallopt(mmap_threshold=1 << 20, trim_threshold=1 << 20, top_pad=0)


def _mallopt(mmap_threshold: int, trim_threshold: int, top_pad: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for number, value in ((-3, mmap_threshold), (-1, trim_threshold), (-2, top_pad)):
            mallopt(number, value)
