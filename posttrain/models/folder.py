"""Resolves a recipe's model: a shipped one, a folder, or a Hub snapshot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import shipped
from posttrain.config import Model
from posttrain.errors import ModelError, in_file
from posttrain.models import json_files, own_template, snapshots, weight_files
from posttrain.storage.files import tree_hash

_MODELS = "name a folder that is here, a shipped model, or a Hub id such as owner/name"


@dataclass(frozen=True)
class Resolved:
    """A model folder on this machine and the hash of its content; for a Hub snapshot the commit, and its id."""

    path: Path
    hash: str
    hub_id: str | None = None


@dataclass(frozen=True)
class ModelSummary:
    """A model, known without fetching its weights. `path`: the folder of config and tokenizer; `size`: bytes of the
    weights; `here`: whether the weights are in that folder too."""

    path: Path
    size: int
    here: bool

    @property
    def parameters(self) -> float:
        """Their number: of weights that are here by the files' headers, else estimated from the bytes."""
        return counted(self.path) if self.here else estimated(self.size)


def resolve(model: Model) -> Resolved:
    """The folder of `model.path`: shipped for a bare name, else a folder, else a Hub id at its revision.

    Where the recipe names a chat template, this is a folder of links to it with that template: see `own_template`.

    Raises:
        ModelError: it is not there, is no model folder, or would have to run its own code.
    """
    path = _folder(model.path)
    if path:
        found = Resolved(path.resolve(), tree_hash(path))
    else:
        path = snapshots.fetch(model.path, model.revision)
        found = Resolved(path, path.name, model.path)
    check_files(found.path, model.path if found.hub_id else str(path))
    if model.chat_template is None:
        return found
    made, digest = own_template.with_template(found.path, found.hash, model.chat_template)
    return Resolved(made, digest, found.hub_id)


def inspect_model(model: Model) -> ModelSummary:
    """Resolves `model` as `resolve` does, but does not fetch weights from the Hub.

    Raises:
        ModelError: as `resolve`.
    """
    path, size = _folder(model.path), None
    if path is None:
        path, size = snapshots.fetch_settings(model.path, model.revision)
    path = path.resolve()
    if size is None:
        check_files(path, str(path))
    else:
        check_settings(path)
    if model.chat_template is not None:
        path, _ = own_template.with_template(path, _stamp(path), model.chat_template)
    return ModelSummary(path, weights(path) if size is None else size, here=size is None)


def _stamp(folder: Path) -> str:
    """A fingerprint of a folder by names, sizes and times: it changes when a file is changed, added or fetched."""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    return f"{folder} {files}"


def estimated(size: int) -> float:
    """The number of parameters, estimated from the bytes of the weights: 16 bits each, 32 below 2 GB."""
    return size / (4 if size < 2e9 else 2)


def counted(folder: Path) -> float:
    """The number of parameters of a model folder, from the headers of its weights; estimated if those fail."""
    try:
        return float(sum(math.prod(tensor.shape) for tensor in weight_files.headers(folder).values()))
    except (ModelError, OSError):
        return estimated(weights(folder))


def weights(folder: Path) -> int:
    """Bytes of a folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _folder(name: str) -> Path | None:
    """The folder of a model that is shipped or on this machine; None for a Hub id."""
    if "/" not in name:
        return shipped.locate("data", name)
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise ModelError("there is no such model folder", file=name, hint=_MODELS, rule="model-not-found")
    return None


def check_files(folder: Path, name: str) -> None:
    """Checks a model folder by the headers of its files, in milliseconds.

    Raises:
        ModelError: a file is missing, cut short or of another kind, or code would have to be run.
    """
    if not json_files.there(folder / "config.json"):
        if (folder / "adapter_config.json").is_file() or any(folder.glob("*.gguf")):
            weight_files.files(folder, name)  # says that an adapter, or GGUF, is no model
        raise ModelError(
            "the folder holds no config.json, so it is no Hugging Face model",
            file=name,
            hint="name the folder that save_pretrained wrote",
            rule="model-no-config",
        )
    weight_files.files(folder, name)
    check_settings(folder)
    weight_files.headers(folder)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            "an adapter's config lies beside the weights of a whole model: transformers would add the adapter to it, "
            "and freeze the model",
            file=str(folder / "adapter_config.json"),
            hint="remove it where the adapter is merged already; else merge it: merge_and_unload() of peft",
            rule="model-adapter-beside",
        )


def check_settings(folder: Path) -> None:
    """Raises ModelError: a config is no regular file, no JSON or of absurd size, or the model or its tokenizer would
    run code that came with it.

    transformers asks the person at the terminal whether to. A model that names such code, and whose architecture
    transformers has itself, runs without it, and is taken.
    """
    json_files.check_all(folder)
    config = json_files.read(folder / "config.json")
    with in_file(folder / "config.json"):
        json_files.check_counts(config)
    tokenizer = json_files.read(folder / "tokenizer_config.json")
    if "auto_map" in config:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if str(config.get("model_type")) not in CONFIG_MAPPING_NAMES:
            raise _brings_code(folder / "config.json", f"the architecture {config.get('model_type')!r}")
    if "auto_map" in tokenizer:
        import transformers

        if not hasattr(transformers, str(tokenizer.get("tokenizer_class"))):
            raise _brings_code(folder / "tokenizer_config.json", f"the tokenizer {tokenizer.get('tokenizer_class')!r}")


def _brings_code(file: Path, what: str) -> ModelError:
    return ModelError(
        f"{what} is code that comes with the model (auto_map), and such code is never run",
        file=str(file),
        hint="take a model whose architecture transformers has itself",
        rule="model-brings-code",
    )


def special_tokens(folder: Path) -> list[str]:
    """The special tokens of a model folder's tokenizer as text, sorted; none where it has no tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return []
    added = json_files.read(file, largest=json_files.TOKENIZER).get("added_tokens") or []
    if not isinstance(added, list) or not all(_is_token(token) for token in added):
        raise ModelError(
            "its added_tokens are no list of tokens",
            file=str(file),
            hint=json_files.FETCH_AGAIN,
            rule="model-added-tokens",
        )
    return sorted(token["content"] for token in added if token["special"])


def _is_token(token: Any) -> bool:
    return isinstance(token, dict) and isinstance(token.get("content"), str) and isinstance(token.get("special"), bool)
