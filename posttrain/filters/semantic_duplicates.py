"""Semantic duplicates: of answers that mean the same, the best and hardest stays (SemDeDup, as in Llama 3, 4.2.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from posttrain.config.section import MOST
from posttrain.data.words import Ints
from posttrain.filters import embedding
from posttrain.filters.base import Decide, Filter, FilterContext, Scope, Verdict
from posttrain.filters.embedding import Points
from posttrain.filters.extras import check_installed
from posttrain.filters.rows import Rows

IN_A_CLUSTER = 500  # rows, on average

Floats = npt.NDArray[np.float64]


class SemanticDuplicates(Filter):
    """Of rows that mean nearly the same keeps the best.

    Within each cluster of embeddings rows are taken by quality × difficulty, and one is kept where its cosine
    similarity to all that are kept so far is below `threshold`.

    Figure: the largest of these similarities. Quality: the share of rows with no higher `score` (1 without such a
    column). Difficulty: 1 − passes / (K + 1) of the prompt's K rows that reach this filter, a pass being a score ≥
    `passes`; so put it before `best-of-k`. The paper gives neither threshold nor how the two scores are had. State: the
    embeddings, 4 bytes a dimension and row; by words 512 bytes a row, and 8 for each different word or pair in it.
    Does not see: duplicates in two different clusters.
    """

    scope: ClassVar[Scope] = "whole"
    use: Literal["semantic-duplicates"] = "semantic-duplicates"
    embed: str = Field(
        default="tfidf",
        description="what embeds prompt and answer: `tfidf` (words alone, no model), or a model by Hub id or folder, "
        "whose hidden states are averaged as sentence-transformers' are",
    )
    threshold: float = Field(default=0.95, gt=0, le=1, description="cosine similarity from which a row is dropped")
    clusters: int | None = Field(default=None, ge=1, le=MOST, description="k-means clusters; null: one for 500 rows")
    passes: float = Field(
        default=0.5, ge=-MOST, le=MOST, description="score from which an answer counts as right, for the difficulty"
    )

    def external_hashes(self) -> dict[str, str]:
        return {} if self.embed == "tfidf" else {"embed": embedding.identity(self.embed)}

    def start(self, context: FilterContext) -> Decide:
        verdicts, seen = self._verdicts(context), 0

        def decide(rows: Rows) -> dict[int, Verdict]:
            nonlocal seen
            first, seen = seen, seen + len(rows)
            return {at: verdicts[first + at] for at in range(len(rows)) if first + at in verdicts}

        return decide

    def _verdicts(self, context: FilterContext) -> dict[int, Verdict]:
        """By the number of the row among those that reach this filter."""
        keys: list[int] = []
        scores: list[float] = []

        def texts() -> Iterator[list[str]]:
            for rows in filter(len, context.reaching()):
                keys.extend(map(hash, rows.prompt_keys))
                given = rows.numbers("score") if rows.has("score") else [0.0] * len(rows)
                scores.extend(float("nan") if score is None else score for score in given)
                yield [f"{prompt}\n{answer}" for prompt, answer in zip(rows.prompts, rows.answers, strict=True)]

        if self.embed == "tfidf":
            compared, points = embedding.by_words(texts(), context.seed)
        else:
            compared = points = embedding.by_model(texts(), self.embed)
        weight = worth(keys, scores, self.passes)
        found = greedy(compared, clustered(points, self.clusters, context.seed), weight, self.threshold)
        return {row: Verdict("semantic duplicate", figure) for row, figure in found.items()}


def worth(keys: Sequence[int], scores: Sequence[float], passes: float) -> Floats:
    """Quality × difficulty of each row; see `SemanticDuplicates`. A row without a score is worth nothing."""
    given = np.array(scores, np.float64)
    ascending = np.sort(given[~np.isnan(given)])
    quality = np.searchsorted(ascending, given, side="right") / max(1, len(ascending))
    counts = Counter(keys)
    passed = Counter(key for key, score in zip(keys, scores, strict=True) if score >= passes)
    difficulty = np.array([1 - passed[key] / (counts[key] + 1) for key in keys])
    return np.where(np.isnan(given), 0.0, quality * difficulty)


def clustered(points: Points, count: int | None, seed: int) -> Ints:
    """The cluster of each point."""
    count = min(count or -(-len(points) // IN_A_CLUSTER), len(points))
    if count <= 1:
        return np.zeros(len(points), np.int64)
    check_installed("quality", "semantic-duplicates")
    from sklearn.cluster import MiniBatchKMeans

    kind: Any = MiniBatchKMeans  # its types are told by its defaults
    means = kind(count, random_state=seed % 2**32, n_init=1, batch_size=4096)
    return means.fit_predict(points).astype(np.int64)


def greedy(points: Any, clusters: Ints, weight: Floats, threshold: float) -> dict[int, float]:
    """Which points are dropped, and their similarity to the nearest one kept. Of equal weights the first is kept.

    `points`: [rows, width], dense or sparse, each of length 1.
    """
    dropped: dict[int, float] = {}
    order = np.lexsort((np.arange(len(weight)), -weight, clusters))
    ends = np.flatnonzero(np.diff(clusters[order])) + 1
    for rows in np.split(order, ends):
        nearest = np.full(len(rows), -1.0, np.float32)
        cluster = points[rows]
        for place, row in enumerate(rows.tolist()):
            if nearest[place] >= threshold:
                dropped[row] = float(nearest[place])
            else:
                likeness = cluster[place + 1 :] @ cluster[place].T
                likeness = likeness.toarray().ravel() if hasattr(likeness, "toarray") else likeness
                nearest[place + 1 :] = np.maximum(nearest[place + 1 :], likeness)
    return dropped
