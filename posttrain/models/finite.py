"""Checks that every weight of a folder is finite, reading a piece at a time.

Of a large model that takes a minute or more, so files that were read whole and found so are remembered, in the user's
cache: by place and time on the disk, which a file that is changed or put in its place does not share.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from posttrain.errors import InputError, ModelError
from posttrain.models.weight_files import FLOATS, Tensor, headers
from posttrain.storage import regular_files, user_cache

_PIECE = 1 << 20  # bytes: what stays in a cache of the processor
_LARGE = 1 << 30  # bytes of a folder's weights that are worth remembering
_MOST = 1_000_000  # bytes of what is remembered: some 10,000 files; then it begins anew


def check(folder: Path) -> None:
    """Raises ModelError that names the first tensor with a weight that is NaN or infinite."""
    tensors = headers(folder)
    files = {tensor.file for tensor in tensors.values()}
    large = sum(file.stat().st_size for file in files) >= _LARGE
    known = _known() if large else frozenset()
    new = {file: identity for file in files if (identity := _identity(file)) not in known}
    buffer = bytearray(_PIECE)
    for name, tensor in tensors.items():
        if tensor.file in new and tensor.dtype in FLOATS and not _is_finite(tensor, buffer):
            problem = f"{name} holds weights that are NaN or infinite"
            hint = "fetch the file again, or go back to an earlier checkpoint of its training"
            raise ModelError(problem, file=str(tensor.file), hint=hint, rule="model-weights-not-finite")
    if large:
        _remember([identity for file, identity in new.items() if identity == _identity(file)])  # not changed meanwhile


def _identity(file: Path) -> str:
    """Another once the file is changed, replaced or copied, even where its time is set back."""
    at = file.stat()
    return f"{at.st_dev} {at.st_ino} {at.st_size} {at.st_mtime_ns} {at.st_ctime_ns}"


def _list() -> Path:
    return user_cache.folder() / "finite-weights.txt"


def _known() -> frozenset[str]:
    """The identities of files whose weights are finite; none where they cannot be read."""
    try:
        return frozenset(regular_files.read_text(_list(), _MOST).splitlines())
    except (OSError, UnicodeDecodeError, InputError):
        return frozenset()


def _remember(identities: list[str]) -> None:
    """Adds a line for each, in one write; where that cannot be, the files are read again."""
    path = _list()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and (regular_files.not_regular(path) or not _known()):
            path.unlink()  # broken, or full
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{one}\n" for one in ["", *identities]))


def _is_finite(tensor: Tensor, buffer: bytearray) -> bool:
    import torch

    dtype = getattr(torch, FLOATS[tensor.dtype])
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.begin)
        left = tensor.end - tensor.begin
        while left:
            read = file.readinto(memoryview(buffer)[: min(left, _PIECE)])
            whole = read // dtype.itemsize * dtype.itemsize
            if not whole:
                return True  # cut short meanwhile: whoever loads it will say so
            file.seek(whole - read, 1)
            values = torch.frombuffer(buffer, dtype=dtype, count=whole // dtype.itemsize)
            # A sum is as fast as memory, and not finite where a value is not; where it overflows, each is asked.
            if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
                return False
            left -= whole
    return True
