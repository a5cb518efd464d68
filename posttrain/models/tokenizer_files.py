"""Loads the tokenizer of a model folder, with an error for every fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.errors import ModelError
from posttrain.models import json_files
from posttrain.models.structure import first_line

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_AGAIN = "fetch the tokenizer's files again, from where the model comes from"


def load(folder: Path) -> Any:
    """Raises ModelError: there is none, or transformers can make none of its files."""
    from transformers import AutoTokenizer

    there = [json_files.there(folder / name) for name in _FILES]  # each is looked at
    if not any(there):
        raise ModelError(
            "the folder holds no tokenizer",
            file=str(folder),
            hint="save it there too: tokenizer.save_pretrained(folder)",
            rule="model-no-tokenizer",
        )
    _check_fast(folder / "tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except MemoryError:  # of the bounds that this is read in
        raise
    except Exception as error:  # tokenizers raises Exception itself
        raise ModelError(
            f"transformers can make no tokenizer of these files: {first_line(error)}",
            file=str(folder / "tokenizer_config.json"),
            hint=_AGAIN,
            rule="model-tokenizer",
        ) from error


def _check_fast(file: Path) -> None:
    """Raises ModelError where tokenizer.json is there and no tokenizer."""
    from tokenizers import Tokenizer

    if not file.is_file():
        return
    json_files.read(file, largest=json_files.TOKENIZER)
    try:
        Tokenizer.from_file(str(file))
    except MemoryError:
        raise
    except Exception as error:  # here too
        raise ModelError(
            f"this is no tokenizer: {first_line(error)}", file=str(file), hint=_AGAIN, rule="model-tokenizer-json"
        ) from error
