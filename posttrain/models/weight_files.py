"""The weight files of a folder and their headers, read without loading weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from posttrain.errors import ModelError, in_file
from posttrain.models import json_files

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"  # the names that transformers reads, in this order
_LARGEST_HEADER = 32 << 20  # bytes; 200,000 tensors
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}  # as torch calls them
_CONVERT = "call it by its own name (pytorch_model.bin, model.gguf), and the error then says how to convert it"
_AGAIN = "fetch the file again; compare its size with the one where it comes from"


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: `dtype` as safetensors calls it; its bytes begin at `begin` of the file, and end before
    `end`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def files(folder: Path, name: str | None = None) -> list[Path]:
    """The files of weights that transformers would load, in the order of their names.

    `name`: what to call the folder in errors, where it is not its path.

    Raises:
        ModelError: there is none, or what is there instead is no safetensors, or the index names a file that is absent.
    """
    if (folder / ONE).is_file():
        return [folder / ONE]
    if (folder / INDEX).is_file():
        return sorted({folder / shard for shard in _index(folder / INDEX).values()})
    raise _no_weights(folder).replaced(file=name or str(folder))


def headers(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's weights by its name.

    Raises:
        ModelError: as `files`, and where a header does not fit its file or the index.
    """
    found: dict[str, Tensor] = {}
    paths = files(folder)
    for file in paths:
        found |= header(file)
    index = {} if paths == [folder / ONE] else _index(folder / INDEX)
    absent = sorted(name for name, shard in index.items() if name not in found or found[name].file.name != shard)
    if absent:
        raise ModelError(
            f"the index names {len(absent)} tensors that their files do not hold: {some(absent)}",
            file=str(folder / INDEX),
            hint="fetch the folder again: its files are not of one model",
            rule="model-index-tensors",
        )
    return found


def header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file.

    Raises:
        ModelError: it is a Git LFS pointer, cut short, or its header is none.
    """
    json_files.check_no_pointer(file)
    size = file.stat().st_size
    with in_file(file), file.open("rb") as opened:
        begins = opened.read(8)
        length = struct.unpack("<Q", begins)[0] if len(begins) == 8 else 0
        _check_length(begins, length, size)
        said = _header_of(opened.read(length))
        found = {name: _tensor(file, name, one, 8 + length) for name, one in said.items()}
        _check_bytes(found, 8 + length, size)
        return found


def _check_length(begins: bytes, length: int, size: int) -> None:
    """Checks the length of a header by the file's first bytes and its size."""
    if size == 0:
        raise ModelError("the file is empty", hint=_AGAIN, rule="model-weights-empty")
    if length > _LARGEST_HEADER and begins.startswith((b"PK", b"\x80", b"GGUF")):
        problem = "this is no safetensors, whatever its name: other formats are not read, since they can run code"
        raise ModelError(problem, hint=_CONVERT, rule="model-weights-format")
    if length > _LARGEST_HEADER or not length:
        raise _no_header(f"its header would have {length:,} bytes")
    if length + 8 > size:
        raise _cut(f"the header ends at byte {length + 8:,}", size)


def _header_of(text: bytes) -> dict[str, Any]:
    try:
        said = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _no_header(f"its header is no JSON ({type(error).__name__})") from None
    if not isinstance(said, dict):
        raise _no_header("its header is no JSON object")
    said.pop("__metadata__", None)
    return said


def _tensor(file: Path, name: str, said: Any, start: int) -> Tensor:
    parts = said if isinstance(said, dict) else {}
    dtype, shape, offsets = parts.get("dtype"), parts.get("shape"), parts.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _no_header(f"{name[:80]!r} has the dtype {str(dtype)[:40]!r}, which safetensors does not have")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _no_header(f"{name[:80]!r} has no shape and offsets")
    bits = math.prod(shape) * _BITS[dtype] if len(shape) < 65 else -1
    if 8 * (offsets[1] - offsets[0]) != bits:
        raise _bad_offsets(f"{name[:80]!r} does not have the bytes that its shape and dtype need")
    return Tensor(file, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(one, int) and 0 <= one < 1 << 48 for one in value)


def _check_bytes(tensors: Mapping[str, Tensor], start: int, size: int) -> None:
    """Raises ModelError unless the tensors fill the file from `start` to its end, one after the other."""
    at = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != at:
            raise _bad_offsets(f"the bytes of {name[:80]!r} overlap others, or leave a gap")
        at = tensor.end
    if at > size:
        raise _cut(f"its tensors end at byte {at:,}", size)
    if at < size:
        raise _bad_offsets(f"{size - at:,} bytes belong to no tensor")


def _index(file: Path) -> dict[str, str]:
    with in_file(file):
        return _weight_map(json_files.read(file).get("weight_map"), file.parent)


def _weight_map(said: Any, folder: Path) -> dict[str, str]:
    if not isinstance(said, dict) or not said or not all(isinstance(shard, str) for shard in said.values()):
        problem = "the index has no weight_map of names and files"
        raise ModelError(problem, hint=json_files.FETCH_AGAIN, rule="model-index")
    shards = sorted(set(said.values()))
    outside = [shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")]
    if outside:
        raise ModelError(
            f"the index names {some(outside)}, which is no safetensors file of this folder",
            hint="fetch the folder again from where the model comes from",
            rule="model-index-file",
        )
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        problem = f"{len(absent)} of {len(shards)} files of weights are not there: {some(absent)}"
        raise ModelError(problem, hint="fetch the rest of the model", rule="model-index-absent")
    return said


def _no_weights(folder: Path) -> ModelError:
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if any(folder.glob("adapter_model.*")) and not (set(others) - {"adapter_model.safetensors"}):
        return ModelError(
            "the folder holds an adapter without the weights of its base model",
            hint="merge it: AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(...)",
            rule="model-adapter-alone",
        )
    if {ONE, INDEX} & {*others}:
        return ModelError(
            f"{' and '.join(sorted({ONE, INDEX} & {*others}))} is no regular file, or a link to nothing",
            hint="copy the files themselves: of the Hub's cache with `cp -rL`",
            rule="model-weights-not-regular",
        )
    if others:
        return ModelError(
            f"the folder's weights are called {some(others)}; {ONE} or {INDEX} is read",
            hint="save them with save_pretrained, or fetch the files that belong to transformers",
            rule="model-weights-name",
        )
    return other_formats([path.name for path in folder.iterdir()], str(folder)) or ModelError(
        "the folder holds no .safetensors file, so no weights; other formats are not read, since they can run code",
        hint="fetch the weights too",
        rule="model-no-weights",
    )


def other_formats(names: Sequence[str], source: str) -> ModelError | None:
    """How to convert the weights among the files `names` of `source`, a folder or Hub id, that has no safetensors; None
    where there are no weights."""
    target = f"./{Path(source).name}-safetensors"
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if gguf:
        return ModelError(
            f"the weights are GGUF ({some(gguf)}), which is for inference; .safetensors files are trained",
            hint="take the model it was made from, or convert it in Python, once (pip install gguf):"
            + _lines(
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                f"model = AutoModelForCausalLM.from_pretrained({source!r}, gguf_file={gguf[0]!r})",
                "model.hf_quantizer = None; del model.config.quantization_config  # with these it cannot be saved",
                f"model.save_pretrained({target!r})",
                f"AutoTokenizer.from_pretrained({source!r}, gguf_file={gguf[0]!r}).save_pretrained({target!r})",
            ),
            rule="model-gguf",
        )
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if not pickled:
        return None
    return ModelError(
        f"the weights are pickled ({some(pickled)}), which can run code; only .safetensors files are read",
        hint="if you trust who made them, convert them in Python, once:"
        + _lines(
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f"model = AutoModelForCausalLM.from_pretrained({source!r}, use_safetensors=False)",
            f"model.save_pretrained({target!r})",
            f"AutoTokenizer.from_pretrained({source!r}).save_pretrained({target!r})",
        )
        if any(name.startswith("pytorch_model") for name in pickled)
        else "convert them to transformers' format with the script of the model's authors",
        rule="model-pickled-weights",
    )


def _lines(*lines: str) -> str:
    return "".join(f"\n    {line}" for line in lines)


def _no_header(why: str) -> ModelError:
    return ModelError(f"this is no safetensors file: {why}", hint=_AGAIN, rule="model-weights-header")


def _bad_offsets(why: str) -> ModelError:
    return ModelError(f"the header is wrong: {why}", hint=_AGAIN, rule="model-weights-offsets")


def _cut(why: str, size: int) -> ModelError:
    problem = f"the file is cut short: {why}, and the file at {size:,}"
    return ModelError(problem, hint=_AGAIN, rule="model-weights-truncated")


def some(names: Sequence[str]) -> str:
    """The first few of them."""
    return ", ".join(name[:80] for name in names[:3]) + (", …" if names[3:] else "")
