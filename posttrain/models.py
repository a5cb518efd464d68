"""Where a recipe's model lies and what it is: a shipped one, a folder, or a Hub snapshot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from posttrain import content, store
from posttrain.errors import ModelError
from posttrain.recipe import Model


@dataclass(frozen=True)
class Resolved:
    """A model folder on this machine and the hash of what is in it; of a Hub snapshot the commit, and the id."""

    path: Path
    hash: str
    hub_id: str | None = None


def resolve(model: Model) -> Resolved:
    """The folder of `model.path`: shipped for a bare name, else a folder, else a Hub id at its revision.

    Raises:
        ModelError: it is not there, or is no model folder.
    """
    name = model.path
    if "/" not in name:
        path = content.data_path(name)
    elif Path(name).is_dir():
        path = Path(name)
    elif name.startswith((".", "/")) or name.count("/") != 1:
        raise ModelError("there is no such model folder", file=name, hint="check model.path")
    else:
        return _snapshot(name, model.revision)
    if not (path / "config.json").is_file():
        raise ModelError("the folder holds no config.json, so it is no Hugging Face model", file=str(path))
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            "the folder holds no .safetensors file; other formats are not read, since they can run code",
            file=str(path),
            hint="convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)",
        )
    return Resolved(path.resolve(), store.tree_hash(path))


def special_tokens(folder: Path) -> list[str]:
    """The special tokens of a model folder's tokenizer as text, sorted; none where it has no tokenizer.json."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return []
    try:
        added = json.loads(file.read_text(encoding="utf-8")).get("added_tokens") or []
    except (ValueError, AttributeError):
        raise ModelError("not the JSON of a tokenizer", file=str(file)) from None
    return sorted(token["content"] for token in added if token["special"])


def _snapshot(name: str, revision: str | None) -> Resolved:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"cannot get {name} from the Hub: {str(error).splitlines()[0]}",
            hint="check the name and the network, or use a local folder: --set model.path=./folder",
        ) from error
    return Resolved(path, path.name, name)  # a snapshot's folder is named by its commit
