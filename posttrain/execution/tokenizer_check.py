"""Fingerprints of tokenizers (vocabulary, chat template, special ids), kept in each manifest and compared.

A stage whose inputs disagree would silently train on or score tokens that mean something else. The padding token is not
in the fingerprint: a trainer may set it, and no text contains it.
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
    """The fingerprint of a model folder; None if it has no readable tokenizer (the stage that reads it says why)."""
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
    """The fingerprint common to a stage's inputs; None if none of them has one.

    Raises:
        StageError: two of them disagree.
    """
    known = [(name, path, found) for name, path in inputs.items() if name not in _OTHER and (found := _known(path))]
    for name, path, found in known[1:]:
        check(known[0][2], _shown(known[0][0], known[0][1]), found, _shown(name, path))
    return known[0][2] if known else None


def check(one: Fingerprint, name: str, other: Fingerprint, other_name: str) -> None:
    """Raises StageError if the two differ."""
    differ = [words for part, words in _WORDS.items() if one[part] != other[part]]
    if differ:
        raise StageError(
            f"{name} and {other_name} have different tokenizers: {' and '.join(differ)} differ. Nothing was "
            "published. Take models of one family, unchanged; after a change of the template start a new run (--run)"
        )


def _known(folder: Path) -> Fingerprint | None:
    """The fingerprint in an artifact's manifest, or of the files of a model from outside the run."""
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
