"""Where a recipe's model lies and what it is: a shipped one, a folder, or a Hub snapshot."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain import content, store
from posttrain.errors import DamagedError, InputError, ModelError
from posttrain.recipe import Model
from posttrain.status import status

_SHA256 = 64  # its length in hex digits
_MODELS = "name a folder that is here, a shipped model, or a Hub id such as owner/name"


@dataclass(frozen=True)
class Resolved:
    """A model folder on this machine and the hash of what is in it; of a Hub snapshot the commit, and the id."""

    path: Path
    hash: str
    hub_id: str | None = None


@dataclass(frozen=True)
class Look:
    """What can be seen of a model without fetching its weights. `path` holds config and tokenizer, and where `here`
    the weights too, `size` bytes of them."""

    path: Path
    size: int
    here: bool


def resolve(model: Model) -> Resolved:
    """The folder of `model.path`: shipped for a bare name, else a folder, else a Hub id at its revision.

    Raises:
        ModelError: it is not there, is no model folder, holds no safetensors, or would have to run its own code.
    """
    path = _folder(model.path)
    found = Resolved(path.resolve(), store.tree_hash(path)) if path else _snapshot(model.path, model.revision)
    check_no_code(found.path)
    return found


def find(name: str) -> Path:
    """The folder of a model that a command is given: a run's promoted policy, a folder, a shipped name, or a Hub id.

    Raises:
        InputError: it is none of these, or a run that has no policy yet.
    """
    folder = Path(name)
    if (folder / "run.json").is_file():
        policy = status(store.Store(folder))["policy"]
        if policy is None:
            raise InputError("the run has no policy yet", file=name, hint="wait for its first round, or name a model")
        name = str(folder / policy)
    elif folder.is_dir():
        name = f"./{name}" if "/" not in name else name
    return resolve(Model(path=name)).path


def look(model: Model) -> Look:
    """The same without its weights, where they are on the Hub and not here yet.

    Raises:
        ModelError: as `resolve`.
    """
    path = _folder(model.path)
    if path is None:
        return _look_on_hub(model.path, model.revision)
    return Look(path.resolve(), weights(path), True)


def weights(folder: Path) -> int:
    """Bytes of a folder's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _folder(name: str) -> Path | None:
    """The folder of a model that is shipped or on this machine; None for a Hub id."""
    if "/" not in name:
        path = content.data_path(name)
    elif Path(name).is_dir():
        path = Path(name)
    elif name.startswith((".", "/")) or name.count("/") != 1:
        raise ModelError("there is no such model folder", file=name, hint=_MODELS)
    else:
        return None
    if not (path / "config.json").is_file():
        raise ModelError("the folder holds no config.json, so it is no Hugging Face model", file=str(path))
    _check_safetensors(path, str(path))
    return path


def _check_safetensors(path: Path, name: str) -> None:
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            "the folder holds no .safetensors file; other formats are not read, since they can run code",
            file=name,
            hint="convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)",
        )


def check_no_code(folder: Path) -> None:
    """Raises ModelError: the model or its tokenizer would run code that came with it.

    transformers asks the person at the terminal whether to. A model that names such code, and whose architecture
    transformers has itself, runs without it, and is taken.
    """
    config, tokenizer = (_settings(folder / name) for name in ("config.json", "tokenizer_config.json"))
    if "auto_map" in config:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if config.get("model_type") not in CONFIG_MAPPING_NAMES:
            raise _brings_code(folder / "config.json", f"the architecture {config.get('model_type')!r}")
    if "auto_map" in tokenizer:
        import transformers

        if not hasattr(transformers, str(tokenizer.get("tokenizer_class"))):
            raise _brings_code(folder / "tokenizer_config.json", f"the tokenizer {tokenizer.get('tokenizer_class')!r}")


def _settings(path: Path) -> dict[str, Any]:
    """What a file of a model folder says; nothing where it is not there or no JSON, which its reader will tell."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _brings_code(file: Path, what: str) -> ModelError:
    return ModelError(
        f"{what} is code that comes with the model (auto_map), and such code is never run",
        file=str(file),
        hint="take a model whose architecture transformers has itself",
    )


def _look_on_hub(name: str, revision: str | None) -> Look:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if any(path.glob("*.safetensors")):
            return Look(path, weights(path), True)
    except (LocalEntryNotFoundError, OSError):
        pass  # not here yet
    try:
        files = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
        small = ["*.json", "*.jinja", "*.model", "*.txt"]
        path = Path(snapshot_download(name, revision=revision, allow_patterns=small))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise _unreachable(name, error) from error
    return Look(path, sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors")), False)


def check_same_tokens(model: Path, reference: Path) -> None:
    """Raises ModelError when DPO's reference does not read tokens as the model does."""
    from transformers import AutoTokenizer

    ours, theirs = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (model, reference))
    if ours != theirs:
        raise ModelError(
            "dpo: the reference has another tokenizer than the policy, so their log-probs cannot be compared",
            file=str(reference),
            hint="set dpo.reference to a model of the same family, or to start, initial, previous or averaged",
        )


def context_length(model: Path) -> int:
    """How many tokens the model takes; a huge number where its config does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 1 << 30


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
        raise _unreachable(name, error) from error
    _check_safetensors(path, name)
    return Resolved(path, path.name, name)  # a snapshot's folder is named by its commit


def _unreachable(name: str, error: Exception) -> ModelError:
    cause = (str(error).splitlines() or [type(error).__name__])[0]
    hint = "check the name and the network, or name a folder that is here, as in ./folder"
    return ModelError(f"cannot get {name} from the Hub: {cause}", hint=hint)


def check_snapshot(path: Path) -> None:
    """Hash the files of a Hub snapshot. The Hub's cache calls each by its hash: SHA-256, or git's for small ones.

    A folder that is none is passed over: `resolve` hashed it. Raises DamagedError.
    """
    for file in sorted(path.rglob("*")):
        blob = file.resolve()
        if blob.parent.name != "blobs" or not blob.is_file():
            continue
        git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        found = store.file_hash(blob) if len(blob.name) == _SHA256 else _more(git, blob)
        if found != blob.name:
            raise DamagedError(
                f"{file}: is not what came from the Hub; remove {blob}, and the same command fetches it again"
            )


def _more(digest: hashlib._Hash, path: Path) -> str:
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
