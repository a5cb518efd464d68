"""Averages the weights of several models (Llama 3, section 4.1.5), in float64, tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

from posttrain.errors import ModelError
from posttrain.models.weight_files import Tensor, headers
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
    ours, *theirs = weights = [headers(folder) for folder in folders]
    for folder, found in zip(others, theirs, strict=True):
        _check_alike(first, ours, folder, found)
    for part in sorted({weight.file for weight in ours.values()}):
        names = [name for name, weight in ours.items() if weight.file == part]
        means = {name: _mean(name, [found[name].file for found in weights]) for name in names}
        save_file(means, out / part.name, {"format": "pt"})
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


def _check_alike(first: Path, ours: Mapping[str, Tensor], folder: Path, theirs: Mapping[str, Tensor]) -> None:
    unshared = sorted(ours.keys() ^ theirs.keys())
    if unshared:
        raise ModelError(f"cannot average it with {first}: only one of them has {unshared[0]}", file=str(folder))
    for name, weight in ours.items():
        if weight.shape != theirs[name].shape:
            shapes = f"{weight.shape} and {theirs[name].shape}"
            raise ModelError(f"cannot average {name}: its shapes are {shapes}", file=str(folder))


def _mean(name: str, files: Sequence[Path]) -> torch.Tensor:
    first, *others = files
    weight = _read(name, first)
    total = weight.double()
    for file in others:
        total += _read(name, file).double()
    mean = (total / len(files)).to(weight.dtype)
    if not torch.isfinite(mean).all():
        raise ModelError(f"the average of {name} is not finite: one of the models is damaged", file=str(first.parent))
    return mean


def _read(name: str, file: Path) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name)
