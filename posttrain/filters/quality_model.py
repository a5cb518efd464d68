"""A classifier of good and bad rows: logistic regression on TF-IDF or on a model's states. Kept without pickle.

Llama 3 (section 4.2.3) trained its quality classifiers on what Llama 2 judged. Ours are fitted between rounds to what
judges or people kept and dropped. Deterministic: the same rows give the same weights.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.errors import DataError
from posttrain.evaluation.statistics import Figure
from posttrain.system import device

ABOUT, WEIGHTS = "classifier.json", "weights.safetensors"
Embed = Callable[[Sequence[str]], np.ndarray]  # texts → (texts, width) float32

_MOST_TERMS = 50_000
_RESAMPLES = 1000


@dataclass(frozen=True)
class Fitted:
    """A fitted classifier. `terms`: of TF-IDF, a column each; empty where the features are a model's states.

    `scale` and `shift`, `weights`: a number a column; p = σ(weights · ((x − shift) · scale) + intercept).
    """

    terms: tuple[str, ...]
    shift: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: float
    about: dict[str, Any] = field(default_factory=dict)  # what else `classifier.json` says

    def probabilities(self, texts: Sequence[str], embed: Embed | None = None) -> list[float]:
        """How probable it is that each text is good. `embed`: what made the states, for a classifier of these."""
        if not texts:
            return []
        if self.terms:
            from sklearn.preprocessing import normalize

            counts = _counter(self.terms).transform(texts).astype(np.float64)
            counts.data = 1 + np.log(counts.data)  # sublinear, as the vectorizer that was fitted
            x = normalize(counts.multiply(self.scale).tocsr())
        else:
            assert embed is not None
            x = (embed(texts) - self.shift) * self.scale
        logits = np.asarray(x @ self.weights, dtype=np.float64).ravel() + self.intercept
        return (1 / (1 + np.exp(-np.clip(logits, -60, 60)))).tolist()

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        about = {**self.about, "terms": list(self.terms), "intercept": self.intercept}
        (folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        tensors = {"shift": self.shift, "scale": self.scale, "weights": self.weights}
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS)


def load(folder: Path) -> Fitted | None:
    """Loads what `Fitted.save` wrote; None if it does not separate good from bad well enough to be used.

    Raises DataError if it is missing.
    """
    from safetensors.numpy import load_file

    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        if not about["on"]:
            return None
        tensors = load_file(folder / WEIGHTS)
        terms, intercept = tuple(about.pop("terms")), about.pop("intercept")
        return Fitted(terms, tensors["shift"], tensors["scale"], tensors["weights"], intercept, about)
    except (OSError, ValueError, KeyError) as error:
        hint = "it is a folder that the stage quality_classifier made"
        raise DataError(
            f"no learned classifier: {error}", file=str(folder), hint=hint, rule="filter-no-classifier"
        ) from error


def fit(texts: Sequence[str], good: Sequence[bool], embed: Embed | None = None) -> Fitted:
    """Logistic regression, both classes weighing as much, on TF-IDF, or on what `embed` makes of the texts."""
    from sklearn.linear_model import LogisticRegression

    if embed is not None:
        states = embed(texts)
        shift, scale = states.mean(0), 1 / np.maximum(states.std(0), 1e-6)
        terms, x = (), (states - shift) * scale
        strength = 0.01  # many columns for few rows
    else:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), token_pattern=_TOKEN, min_df=2, max_features=_MOST_TERMS, sublinear_tf=True
        )
        try:
            x = vectorizer.fit_transform(texts)
        except ValueError as error:  # no word stands in two texts
            raise DataError(
                f"no classifier can be fitted to these texts: {error}", rule="filter-nothing-to-learn"
            ) from error
        terms = tuple(map(str, vectorizer.get_feature_names_out()))
        shift, scale = np.zeros(len(terms)), vectorizer.idf_
        strength = 1.0
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000).fit(x, np.asarray(good, dtype=int))
    return Fitted(terms, shift, scale, model.coef_[0], float(model.intercept_[0]))


_TOKEN = r"(?u)\w+|[^\w\s]"  # signs too: they tell a finished answer from a cut one


def _counter(terms: Sequence[str]) -> Any:
    """Text to term counts."""
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(ngram_range=(1, 2), token_pattern=_TOKEN, vocabulary=list(terms))


def auc(chances: Sequence[float], good: Sequence[bool], prompts: Sequence[str], seed: int) -> Figure:
    """The area under the ROC curve: how probable it is that a good row gets more than a bad one, ties one half.

    Its 95 % interval is of a bootstrap over prompts, whose rows are no independent draws. None with one class alone.
    """
    chance, truth = np.asarray(chances), np.asarray(good, dtype=bool)
    value = _area(chance, truth)
    if value is None:
        return {"value": None, "ci95": None, "n": len(chance)}
    names, which = np.unique(np.asarray(prompts), return_inverse=True)
    rows = [np.flatnonzero(which == number) for number in range(len(names))]
    rng = np.random.default_rng(seed)
    drawn = [np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(_RESAMPLES)]
    areas = [area for some in drawn if (area := _area(chance[some], truth[some])) is not None]
    low, high = np.percentile(areas, [2.5, 97.5])
    return {"value": value, "ci95": [float(low), float(high)], "n": len(chance)}


def _area(chance: np.ndarray, truth: np.ndarray) -> float | None:
    """By the rank sum of Mann and Whitney."""
    from scipy.stats import rankdata

    good = int(truth.sum())
    bad = len(truth) - good
    if not good or not bad:
        return None
    return float((rankdata(chance)[truth].sum() - good * (good + 1) / 2) / (good * bad))


_MOST_CHARACTERS = 20_000  # of a text


def as_text(prompt: str, answer: str) -> str:
    """The text of a row that the classifier reads."""
    return f"{prompt[:_MOST_CHARACTERS]}\n\n{answer[:_MOST_CHARACTERS]}"


@functools.lru_cache(maxsize=1)
def embedder(policy: Path | None) -> Embed | None:
    """What makes points of texts, with the policy's states; None without one: TF-IDF needs none."""
    if policy is None:
        return None
    from posttrain.engines.embedder import Embedder

    return Embedder(policy, device())
