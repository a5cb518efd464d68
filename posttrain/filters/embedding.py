"""Texts as points on a sphere, near where they mean the same: by a model, or by their words where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrain.errors import ModelError, RecipeError

Points = npt.NDArray[np.float32]  # [texts, width], each of length 1; zero where a text holds nothing

WIDTH = 128  # of the points by words
_FEATURES = 2**18
_TOKENS = 512  # of a text that a model reads
_BATCH = 32


def by_words(parts: Iterable[Sequence[str]], seed: int) -> Points:
    """TF-IDF of hashed words and pairs of words, brought to 128 dimensions by SVD (latent semantic analysis).

    Sees that the same words stand there, in whatever order; does not see that other words mean the same.
    """
    try:
        from scipy.sparse import vstack
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    except ImportError:
        raise missing() from None
    vectorizer: Any = HashingVectorizer  # its types are told by its defaults, so that `norm=None` seems wrong
    hashing = vectorizer(n_features=_FEATURES, ngram_range=(1, 2), alternate_sign=False, norm=None)
    counts: Any = vstack([hashing.transform(texts) for texts in parts], format="csr")
    weighed = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    used = weighed[:, np.unique(weighed.indices)]
    if min(used.shape) <= WIDTH:
        return unit(used.toarray())
    return unit(TruncatedSVD(WIDTH, random_state=seed % 2**32).fit_transform(used))


def by_model(parts: Iterable[Sequence[str]], name: str) -> Points:
    """The mean of the model's last hidden states over a text's tokens, as sentence-transformers' models are used.

    Raises:
        ModelError: the model is not there, and cannot be had.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = resolved(name)
    try:
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"it cannot be loaded to embed texts with: {error}", file=name, hint=_OFFLINE) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    found = []
    for texts in parts:
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        points = np.zeros((len(texts), model.config.hidden_size), np.float32)
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            ids = [tokenizer(texts[row])["input_ids"][:_TOKENS] or [0] for row in rows]
            width = max(map(len, ids))
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device)
            with torch.inference_mode():
                states = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            points[rows] = mean.cpu().numpy()
        found.append(points)
    return unit(np.concatenate(found)) if found else np.zeros((0, 1), np.float32)


_OFFLINE = "name the folder of one that is here, or take `embed: tfidf`, which needs no model and no network"


def resolved(name: str) -> str:
    """The folder of the model, which is fetched from the Hub where it is not here."""
    from posttrain import models
    from posttrain.recipe import Model

    try:
        return str(models.resolve(Model(path=name)).path)
    except ModelError as error:
        raise ModelError(f"the embedding model {name}: {error.message}", file=error.file, hint=_OFFLINE) from None


def identity(name: str) -> str:
    """The hash of what is in the model's folder, or its commit on the Hub."""
    from posttrain import models
    from posttrain.recipe import Model

    return models.resolve(Model(path=resolved(name))).hash


def unit(points: Any) -> Points:
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return (points / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def missing() -> RecipeError:
    return RecipeError("semantic-duplicates needs scikit-learn", hint="pip install 'posttrain[quality]'")
