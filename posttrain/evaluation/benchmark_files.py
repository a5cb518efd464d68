"""What decides a benchmark's figures beside the policy: a hash for the key, without reading lm-evaluation-harness."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from posttrain.config.benchmark import Benchmark
from posttrain.errors import InputError
from posttrain.storage.files import file_hash

_EXTRA = "pip install 'posttrain[eval]'"


def identity(benchmark: Benchmark) -> str:
    """A hash of the version of lm-evaluation-harness, of a task file, of what it includes, of Python files beside it,
    and of files with questions.

    Raises:
        InputError: lm-evaluation-harness is not installed, or a file is not there or not a task's.
    """
    try:
        version = metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise InputError(
            "benchmarks need lm-evaluation-harness, which is not installed", hint=_EXTRA, rule="benchmark-extra"
        ) from None
    files = list(_questions(benchmark.file))
    if "/" in benchmark.task:
        files += _of_task(Path(benchmark.task))
    for _, path in files:
        if not path.is_file():
            raise InputError("there is no such file", file=str(path), rule="benchmark-no-file")
    named = hashlib.sha256(version.encode())
    for split, digest in sorted({(split, file_hash(path)) for split, path in files}):
        named.update(f"\n{split}={digest}".encode())
    return named.hexdigest()


def _questions(given: Any) -> Iterator[tuple[str, Path]]:
    """Files with questions, by split: one, a list, or a mapping of either. Of patterns, the files that they match."""
    if isinstance(given, dict):
        for split, one in given.items():
            yield from ((str(split), path) for _, path in _questions(one))
    elif isinstance(given, list):
        for one in given:
            yield from _questions(one)
    elif isinstance(given, str):
        matched = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else []
        yield from (("", Path(path)) for path in matched or [given])


def _of_task(path: Path) -> Iterator[tuple[str, Path]]:
    """A task file, what it includes, the Python files beside it, and the files that its questions are in."""
    yield "task", path
    if not path.is_file():
        return
    yield from (("task", one) for one in path.parent.glob("*.py"))
    task = _read(path)
    included = task.get("include") or []
    for one in included if isinstance(included, list) else [included]:
        yield from _of_task(path.parent / str(one))
    kwargs = task.get("dataset_kwargs")
    listed = kwargs.get("data_files") if isinstance(kwargs, dict) else None
    yield from ((split, one) for split, one in _questions(listed) if one.is_file())  # an address is none


def _read(path: Path) -> dict[str, Any]:
    """A task file, with the names of functions as words."""
    import yaml  # lm-evaluation-harness brings it

    class Loader(yaml.SafeLoader): ...

    Loader.add_multi_constructor("!", lambda loader, _, node: str(node.value))
    try:
        found = yaml.load(path.read_text("utf-8"), Loader=Loader)
    except (yaml.YAMLError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise InputError(
            f"it is not a task file: {said}", file=str(path), hint="see docs/evaluation.md", rule="benchmark-unreadable"
        ) from None
    if not isinstance(found, dict):
        raise InputError("it is not a task file", file=str(path), rule="benchmark-unreadable")
    return found
