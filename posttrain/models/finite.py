"""Whether every weight of a folder is a finite number, read a piece at a time."""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import ModelError
from posttrain.models.weight_files import Tensor, headers

_PIECE = 1 << 20  # bytes: what stays in a cache of the processor
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def check(folder: Path) -> None:
    """Raises ModelError that names the first tensor with a weight that is NaN or infinite."""
    buffer = bytearray(_PIECE)
    for name, tensor in headers(folder).items():
        if tensor.dtype in _FLOATS and not _is_finite(tensor, buffer):
            raise ModelError(
                f"{name} holds weights that are NaN or infinite",
                file=str(tensor.file),
                hint="fetch the file again, or go back to an earlier checkpoint of its training",
                rule="model-weights-not-finite",
            )


def _is_finite(tensor: Tensor, buffer: bytearray) -> bool:
    import torch

    dtype = getattr(torch, _FLOATS[tensor.dtype])
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.begin)
        left = tensor.end - tensor.begin
        while left:
            read = file.readinto(memoryview(buffer)[: min(left, _PIECE)])
            if not read:
                return True  # cut short meanwhile: whoever loads it will say so
            whole = read // dtype.itemsize * dtype.itemsize
            if not whole:
                return True
            file.seek(whole - read, 1)
            values = torch.frombuffer(buffer, dtype=dtype, count=whole // dtype.itemsize)
            # A sum is as fast as memory, and not finite where a value is not; where it overflows, each is asked.
            if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
                return False
            left -= whole
    return True
