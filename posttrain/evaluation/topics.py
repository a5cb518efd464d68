"""Topics of prompts: k-means on TF-IDF. Deterministic; scikit-learn is imported where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.errors import DataError


def topics(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """The topic of each text: its cluster's three heaviest words, joined by `-`, heaviest first.

    Words in only one text, or in more than half of them, are ignored; a text without other words is `other`. Clusters
    with the same words are distinguished by a number.

    Raises:
        DataError: there are fewer texts with such words than topics.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        token_pattern=r"(?u)\b[^\W\d_]{2,}\b", min_df=2, max_df=0.5, max_features=20_000, sublinear_tf=True
    )
    try:
        x = vectorizer.fit_transform(texts)
    except ValueError:  # no word is left
        x = None
    known = np.flatnonzero(np.asarray(x.getnnz(axis=1))) if x is not None else np.array([], dtype=int)
    if x is None or len(known) < count:
        raise DataError(
            f"{len(texts)} prompts cannot be clustered into {count} topics: {len(known)} share a word with another",
            hint="lower annotate.topics, or leave it out",
            rule="data-topics",
        )
    options: dict[str, Any] = {"random_state": seed % 2**32, "n_init": 5, "batch_size": 4096}
    clusters: Any = MiniBatchKMeans(count, **options).fit(x[known])
    words = [str(word) for word in vectorizer.get_feature_names_out()]
    names: list[str] = []
    for centre in clusters.cluster_centers_:
        name = "-".join(words[at] for at in np.argsort(-centre, kind="stable")[:3])
        same = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{same + 1}" if same else name)
    found = ["other"] * len(texts)
    for at, cluster in zip(known.tolist(), clusters.labels_.tolist(), strict=True):
        found[at] = names[cluster]
    return found
