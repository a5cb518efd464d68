"""The JSON files of a model folder, read with bounds: what transformers reads next is then an object of sane size."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError, in_file
from posttrain.storage import regular_files

LFS = b"version https://git-lfs.github.com/spec/"  # how a file begins that stands for one of Git LFS
# What transformers reads of a model and its tokenizer.
NAMES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_LARGEST = 10 << 20  # bytes of a config
TOKENIZER = 256 << 20  # bytes of a tokenizer.json
_DEEPEST = 64  # objects and lists in one another
_LONGEST = 100_000  # members of one list, such as `layer_types`
_MOST = 1024  # layers, experts or attention heads: several times those of models that are known
FETCH_AGAIN = "fetch the file again from where the model comes from"
OWN_CONFIG = "take the config that belongs to the weights"
WITHOUT_MARK = "save it as UTF-8 without a byte-order mark (BOM), which some editors of Windows write"
_COUNTS = ("layer", "layers", "expert", "experts", "head", "heads")  # how the names of these numbers end


def read(file: Path, largest: int = _LARGEST) -> dict[str, Any]:
    """The object in a JSON file of a model folder; nothing where there is no such file.

    Raises:
        ModelError: it is no regular file, a Git LFS pointer, too large, no JSON, no object, or nested too deep.
    """
    if not there(file):
        return {}
    check_start(file)
    with in_file(file):
        size = file.stat().st_size
        if size > largest:
            problem = f"the file has {size:,} bytes; more than {largest:,} are not read"
            raise ModelError(problem, hint=FETCH_AGAIN, rule="model-json-size")
        return _object(file.read_bytes())


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode("utf-8"))  # of bytes, it would take UTF-16 too
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # no UTF-8, or no JSON
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        hint = "fetch the file again, or mend it"
        raise ModelError(f"this is no JSON: {error}", line=line, hint=hint, rule="model-json") from None
    if not isinstance(found, dict):
        problem = f"this holds a {type(found).__name__}, where an object in braces is expected"
        raise ModelError(problem, hint=FETCH_AGAIN, rule="model-json-object")
    if _depth(found) > _DEEPEST:
        raise _too_deep()
    return found


def check_all(folder: Path) -> None:
    """Raises ModelError: a JSON file that transformers reads is no regular file, a pointer, or does not begin as JSON
    does. Of each the beginning is read."""
    for name in NAMES:
        if there(folder / name):
            check_start(folder / name)


def there(file: Path) -> bool:
    """Whether the file is there.

    Raises:
        ModelError: something else is: a folder, a pipe, a device, a link to nothing.
    """
    try:
        kind = regular_files.not_regular(file)
    except (FileNotFoundError, NotADirectoryError):
        if not file.is_symlink():
            return False
        kind = "a link to nothing"
    if kind is not None:
        raise ModelError(
            f"is {kind}, and a file of that name is read",
            file=str(file),
            hint="put the file itself there, or take this away",
            rule="model-not-regular",
        )
    return True


def check_start(file: Path) -> None:
    """Raises ModelError where a file is a Git LFS pointer, or begins with the mark of a byte order, which transformers
    takes for a fault."""
    check_no_pointer(file)
    with file.open("rb") as opened:
        begins = opened.read(4)
    if begins.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ModelError(
            "the file begins with a byte-order mark, and what reads it wants JSON in UTF-8 without one",
            file=str(file),
            hint=WITHOUT_MARK,
            rule="model-json",
        )


def check_no_pointer(file: Path) -> None:
    """Raises ModelError where a file is only a Git LFS pointer to what it should be."""
    with file.open("rb") as opened:
        begins = opened.read(len(LFS))
    if begins == LFS:
        raise ModelError(
            "this is a Git LFS pointer, not the file itself",
            file=str(file),
            hint=f"fetch the file: git lfs pull, in {file.parent}",
            rule="model-lfs-pointer",
        )


def check_counts(config: dict[str, Any]) -> None:
    """Raises ModelError where a config asks for so many layers, experts or heads that building it would take hours."""
    waiting: list[dict[str, Any]] = [config]
    while waiting:
        for key, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            elif _is_count(key) and isinstance(value, int) and not isinstance(value, bool) and value > _MOST:
                problem = f"{key} is {value:,}; more than {_MOST:,} are not built"
                raise ModelError(problem, hint=OWN_CONFIG, rule="model-config-size")
            elif isinstance(value, list) and len(value) > _LONGEST:
                problem = f"{key} is a list of {len(value):,}; more than {_LONGEST:,} are not read"
                raise ModelError(problem, hint=OWN_CONFIG, rule="model-config-list")


def _is_count(key: str) -> bool:
    return key.rpartition("_")[2] in _COUNTS


def _too_deep() -> ModelError:
    problem = f"objects and lists are nested more than {_DEEPEST} deep"
    return ModelError(problem, hint=FETCH_AGAIN, rule="model-json-nesting")


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        deepest = max(deepest, depth)
        if depth > _DEEPEST:
            break
        members = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        waiting += [(member, depth + 1) for member in members if isinstance(member, dict | list)]
    return deepest
