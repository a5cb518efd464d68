"""The words of texts as hashes, without a Python loop over them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_PUNCTUATION = ".,;:!?\"'`´“”‘’«»„()[]{}<>*_~|…。，、！？；：（）「」"
_LONG_WORD = 30  # characters a word; above it a text has no spaces, and is taken by characters


def words(texts: Sequence[str]) -> tuple[U64, Ints]:
    """The hash of each word, and the number of its text. Case and punctuation around a word are not in it; a distinct
    word is cleaned and hashed once."""
    spaced = [
        text if len(text) < _LONG_WORD or len(text) < _LONG_WORD * text.count(" ") else _apart(text) for text in texts
    ]
    lists = pc.call_function("utf8_split_whitespace", [pa.array(spaced, pa.large_string())])
    encoded = lists.flatten().dictionary_encode()
    hashes = np.array([_hash(word) for word in encoded.dictionary.to_pylist()], np.uint64)
    found = hashes[encoded.indices.to_numpy()]
    rows = np.repeat(np.arange(len(texts)), lists.value_lengths().to_numpy())
    nonempty = found != 0
    return found[nonempty], rows[nonempty]


def _apart(text: str) -> str:
    words = text.split()
    return text if len(words) * _LONG_WORD > len(text) else " ".join(text)


def _hash(word: str) -> int:
    """0: there is nothing in it but punctuation."""
    plain = word.lower().strip(_PUNCTUATION)
    return int.from_bytes(blake2b(plain.encode(), digest_size=8).digest(), "little") or 1 if plain else 0
