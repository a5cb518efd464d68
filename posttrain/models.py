"""Where a recipe's model lies and what it is: a shipped one, a folder, or a Hub snapshot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from posttrain import content, store
from posttrain.errors import DamagedError, ModelError
from posttrain.recipe import Model

_SHA256 = 64  # its length in hex digits


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
