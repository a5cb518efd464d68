"""Embeddings of texts as unit vectors: by a model, or by TF-IDF without one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain import models
from posttrain.config import Model
from posttrain.errors import ModelError
from posttrain.filters.extras import check_installed
from posttrain.storage.files import tree_hash
from posttrain.system import device

Points = npt.NDArray[np.float32]  # [texts, width], each of length 1; zero where a text holds nothing

WIDTH = 128  # of the points by words
_FEATURES = 2**18
_TOKENS = 512  # of a text that a model reads


def by_words(parts: Iterable[Sequence[str]], seed: int) -> tuple[Any, Points]:
    """TF-IDF of hashed words and pairs of words: as a sparse matrix, to compare texts by, and as points for clusters.

    The points have 128 dimensions, by SVD (latent semantic analysis). They are too few to compare by: answers to one
    prompt lie on one point. Sees that the same words stand there, in whatever order, but not that other words mean
    the same.
    """
    check_installed("quality", "semantic-duplicates")
    from scipy.sparse import vstack
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    vectorizer: Any = HashingVectorizer  # its types are told by its defaults, so that `norm=None` seems wrong
    hashing = vectorizer(n_features=_FEATURES, ngram_range=(1, 2), alternate_sign=False, norm=None)
    counted = [hashing.transform(texts) for texts in parts]
    if not counted:
        nothing = np.zeros((0, WIDTH), np.float32)
        return nothing, nothing
    counts: Any = vstack(counted, format="csr")
    weighed = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    used = weighed[:, np.unique(weighed.indices)].astype(np.float32)  # rows of length 1
    if min(used.shape) <= WIDTH:
        return used, unit(used.toarray())
    return used, unit(TruncatedSVD(WIDTH, random_state=seed % 2**32).fit_transform(used))


def by_model(parts: Iterable[Sequence[str]], name: str) -> Points:
    """The mean of the model's last hidden states over a text's tokens, as sentence-transformers' models are used.

    Raises:
        ModelError: the model does not exist, or cannot be fetched.
    """
    from posttrain.engines.embedder import Embedder

    try:
        embed = Embedder(resolved(name), device(), _TOKENS, special_tokens=True)
    except ModelError as error:
        raise error.replaced(hint=_OFFLINE) from error
    found = [embed(texts) for texts in parts]
    return unit(np.concatenate(found)) if found else np.zeros((0, 1), np.float32)


_OFFLINE = "name the folder of one that is here, or take `embed: tfidf`, which needs no model and no network"


def resolved(name: str) -> Path:
    """The folder of the model, fetched from the Hub if it is not on this machine."""
    try:
        return models.resolve(Model(path=name)).path
    except ModelError as error:
        raise error.replaced(message=f"the embedding model {name}: {error.message}", hint=_OFFLINE) from None


def identity(name: str) -> str:
    """The content hash of the model's folder."""
    return tree_hash(resolved(name))


def unit(points: Any) -> Points:
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return (points / np.where(lengths > 0, lengths, 1)).astype(np.float32)
