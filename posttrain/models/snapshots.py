"""Models of the Hub: fetched into its cache, whole or without their weights."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from posttrain.errors import DamagedError, ModelError
from posttrain.models.weight_files import other_formats
from posttrain.storage.files import file_hash

_SHA256 = 64  # its length in hex digits
_SMALL = ["*.json", "*.jinja", "*.model", "*.txt"]
_NEVER = ["*.bin", "*.pt", "*.pth", "*.gguf"]


def fetch(name: str, revision: str | None) -> Path:
    """Fetches a Hub id. Returns its folder in the cache, whose name is the commit.

    Raises:
        ModelError: the Hub does not have it, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _reaching(name):
        return Path(snapshot_download(name, revision=revision, ignore_patterns=_NEVER))


def fetch_settings(name: str, revision: str | None) -> tuple[Path, int | None]:
    """Fetches config and tokenizer of a Hub id. Returns the folder and the bytes of the weights, None if those are in
    the cache already.

    Raises:
        ModelError: as `fetch`, or its weights are in formats that are not read.
    """
    from huggingface_hub import HfApi, snapshot_download

    with contextlib.suppress(OSError):  # not here yet
        path = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if any(path.glob("*.safetensors")):
            return path, None
    with _reaching(name):
        files = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
        names = [file.rfilename for file in files]
        other = None if any(each.endswith(".safetensors") for each in names) else other_formats(names, name)
        if other:
            raise other.replaced(file=name)
        path = Path(snapshot_download(name, revision=revision, allow_patterns=_SMALL))
    return path, sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))


@contextlib.contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Raises ModelError: the Hub does not have the model `name`, or cannot be reached."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (HFValidationError, OSError) as error:  # errors of HTTP among them
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"cannot get {name} from the Hub: {cause}",
            hint="check the name and the network, or name a folder that is here, as in ./folder",
            rule="model-hub",
        ) from error


def check_snapshot(path: Path) -> None:
    """Hash the files of a Hub snapshot. The Hub's cache calls each by its hash: SHA-256, or git's for small ones.

    A folder that is none is passed over: `resolve` hashed it. Raises DamagedError.
    """
    for file in sorted(path.rglob("*")):
        blob = file.resolve()
        if blob.parent.name != "blobs" or not blob.is_file():
            continue
        found = file_hash(blob) if len(blob.name) == _SHA256 else _git_hash(blob)
        if found != blob.name:
            raise DamagedError(
                f"{file}: is not what came from the Hub; remove {blob}, and the same command fetches it again"
            )


def _git_hash(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()
