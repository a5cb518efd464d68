"""Averages the weights of several models (Llama 3, section 4.1.5), in float64, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

from posttrain.errors import ModelError
from posttrain.storage.store import MANIFEST


def average(folders: Sequence[Path], out: Path) -> None:
    """Writes to `out` the model whose weights are the means of those in `folders`, in the first model's dtypes.

    Config, tokenizer and other files are the first model's. One weight of each model is in memory at a time.

    Raises:
        ModelError: there is no model, they differ in tokenizer or in the names or shapes of their weights, or a weight
            is not finite.
    """
    if not folders:
        raise ModelError("there is no model to average", hint="name a variant, or take the averaging out")
    first, *others = folders
    _check_same_tokens(folders)
    weights = [_weights(folder) for folder in folders]
    for folder, found in zip(others, weights[1:], strict=True):
        if found.keys() != weights[0].keys():
            name = sorted(found.keys() ^ weights[0].keys())[0]
            raise ModelError(f"cannot average it with {first}: only one of them has {name}", file=str(folder))
    for part in sorted(first.glob("*.safetensors")):
        with safe_open(part, framework="pt") as file:
            names = list(file.keys())
        save_file({name: _mean(name, folders, weights) for name in names}, out / part.name, {"format": "pt"})
    for path in sorted(first.iterdir()):  # what lies below, such as an adapter, is the first one's alone
        if path.is_file() and path.suffix != ".safetensors" and path.name != MANIFEST:
            shutil.copy2(path, out / path.name)


def _check_same_tokens(folders: Sequence[Path]) -> None:
    first, *others = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders]
    for folder, vocabulary in zip(folders[1:], others, strict=True):
        if vocabulary != first:
            raise ModelError(
                f"cannot average it with {folders[0]}: they have different tokenizers",
                file=str(folder),
                hint="average models that were trained from one model",
            )


def _weights(folder: Path) -> dict[str, Path]:
    """{weight name: its file}."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    if not found:
        raise ModelError("there are no weights to average", file=str(folder))
    return found


def _mean(name: str, folders: Sequence[Path], weights: Sequence[dict[str, Path]]) -> torch.Tensor:
    total: torch.Tensor | None = None
    dtype = torch.float32
    for folder, where in zip(folders, weights, strict=True):
        with safe_open(where[name], framework="pt") as file:
            weight = file.get_tensor(name)
        if total is None:
            total, dtype = weight.double(), weight.dtype
        elif weight.shape != total.shape:
            shapes = f"{tuple(total.shape)} and {tuple(weight.shape)}"
            raise ModelError(f"cannot average {name}: its shapes are {shapes}", file=str(folder))
        else:
            total += weight.double()
    assert total is not None
    mean = (total / len(folders)).to(dtype)
    if not torch.isfinite(mean).all():
        raise ModelError(f"the average of {name} is not finite: one of the models is damaged", file=str(folders[0]))
    return mean
