"""Durable writes, hashes, and JSON files with a hash of themselves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import DamagedError

_SEAL = "sha256"  # in artifact.json and run.json: the hash of all else in them


def canonical_json(value: Any) -> str:
    """The canonical JSON text of a value, from which keys are hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_hash(folder: Path) -> str:
    """One SHA-256 over the names and contents of all files below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = {str(path.relative_to(folder)): file_hash(path) for path in files}
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Replaces the file at `path` atomically and fsyncs it: a reader sees the old text or the new one."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    fsync(part)
    part.rename(path)
    fsync(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises DamagedError if the file is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path}: not a JSON object")
    return value


def sealed(value: Mapping[str, Any]) -> str:
    """The text of the JSON object with a hash of itself added."""
    plain = json.loads(json.dumps(value))  # as it will be read: names are text
    return json.dumps({**plain, _SEAL: _seal(plain)}, indent=1, ensure_ascii=False)


def read_sealed(path: Path, known: Collection[str]) -> dict[str, Any]:
    """Reads what `sealed` wrote, without the hash. An older file without one is accepted if it has only `known` keys.

    Raises DamagedError if the content does not match the hash.
    """
    try:
        value = read_json(path)
    except DamagedError as error:
        raise DamagedError(f"{error}. {_repair(path)}") from error
    seal = value.pop(_SEAL, None)
    if seal != _seal(value) if seal else not value.keys() <= {*known}:
        raise DamagedError(f"{path}: is not what was written. {_repair(path)}")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _repair(path: Path) -> str:
    root = next((folder.parent for folder in path.parents if folder.name in ("artifacts", "work")), path.parent)
    return f"`posttrain verify {root} --repair` says which stages must run again, and the same command then runs them"


def remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def keep_first(path: Path, content: bytes) -> None:
    """Writes a file that is whole or absent, unless it is there: of several processes that failed, the first says why,
    since the others then fail for want of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    fsync(part)
    with contextlib.suppress(FileExistsError):
        os.link(part, path)
    part.unlink()
