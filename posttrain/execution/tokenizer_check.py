"""What a model takes text for: vocabulary, chat template and special ids, as a fingerprint in each manifest.

A stage whose inputs disagree would train on or score tokens that mean something else, without an error. Padding is not
in it: a trainer may set it, and no text holds it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import DamagedError, StageError
from posttrain.storage import store
from posttrain.storage.files import canonical_json

Fingerprint = Mapping[str, Any]
_WORDS = {"vocabulary": "vocabulary", "chat_template": "chat template", "special": "special ids"}
_OTHER = ("reference",)  # DPO's own check lets it have another template: see posttrain.models.check_same_tokens


def fingerprint(folder: Path) -> Fingerprint | None:
    """Of a model folder; None where there is no tokenizer, or none that can be read: its reader says why."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None
    return {
        "vocabulary": _hash(tokenizer.get_vocab()),
        "chat_template": _hash(tokenizer.chat_template),
        "special": {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id},
    }


def of_inputs(inputs: Mapping[str, Path]) -> Fingerprint | None:
    """What all inputs of a stage agree on; None where none reads or holds tokens.

    Raises:
        StageError: two of them disagree.
    """
    known = [(name, path, found) for name, path in inputs.items() if name not in _OTHER and (found := _known(path))]
    for name, path, found in known[1:]:
        check(known[0][2], _shown(known[0][0], known[0][1]), found, _shown(name, path))
    return known[0][2] if known else None


def check(one: Fingerprint, name: str, other: Fingerprint, other_name: str) -> None:
    """Raises StageError: the two are not the same."""
    differ = [words for part, words in _WORDS.items() if one[part] != other[part]]
    if differ:
        raise StageError(
            f"{name} and {other_name} do not agree on what tokens mean: {' and '.join(differ)} differ. Nothing was "
            "made of them. Take models of one family, unchanged; after a change of the template start a new run (--run)"
        )


def _known(folder: Path) -> Fingerprint | None:
    """What an artifact's manifest says of it; of a model from outside what its files say."""
    if not (folder / store.MANIFEST).is_file():
        return fingerprint(folder)
    try:
        return store.read_manifest(folder).get("tokens")
    except DamagedError:
        return None  # who is to find out did: see posttrain.execution.scheduler


def _shown(role: str, folder: Path) -> str:
    return f"{role} ({folder.name})"


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
