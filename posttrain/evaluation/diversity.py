"""Diversity metrics of a set of texts, which fall (or rise) when a model collapses onto few phrases. Pure."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

Words = Sequence[str]


def words_of(text: str) -> list[str]:
    return text.lower().split()


def distinct(texts: Sequence[Words], n: int) -> float | None:
    """Different n-grams / all n-grams, over all texts (Li et al. 2016, arXiv 1510.03055). Depends on how many there
    are: compare samples of one size. None: there is no n-gram."""
    grams = [gram for words in texts for gram in _grams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def compression_ratio(texts: Sequence[str]) -> float | None:
    """Bytes before / after compression of all texts, one a line (Shaib et al. 2024, arXiv 2403.00553)."""
    plain = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(plain) / len(zlib.compress(plain, 9)) if plain else None


def self_bleu(texts: Sequence[Words], most: int = 4) -> float | None:
    """The mean over texts of BLEU-4 with all others as references (Zhu et al. 2018, arXiv 1802.01886): 1 where each
    stands among the others.

    BLEU as in Papineni et al. 2002, equations 1 to 3: clipped counts, geometric mean of n = 1 … 4, brevity penalty by
    the reference of nearest length; counts of n > 1 plus one, so that short texts have a figure (Lin and Och 2004).
    None: fewer than two texts hold a word. Takes time and memory with all n-grams of the sample, not with pairs.
    """
    texts = [words for words in texts if words]
    if len(texts) < 2:
        return None
    lengths = sorted(map(len, texts))
    logs = np.zeros(len(texts))
    for n in range(1, most + 1):
        counts = [Counter(_grams(words, n)) for words in texts]
        best, holder, second = _two_highest(counts)
        for at, own in enumerate(counts):
            clipped = sum(min(count, second[gram] if holder[gram] == at else best[gram]) for gram, count in own.items())
            smoothing = n > 1
            share = (clipped + smoothing) / (own.total() + smoothing)
            logs[at] += math.log(share) / most if share else -math.inf
    scores = [math.exp(log) * _brevity(len(words), lengths) for log, words in zip(logs, texts, strict=True)]
    return sum(scores) / len(scores)


def _grams(words: Words, n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[at:] for at in range(n)), strict=False))


def _two_highest(
    counts: Sequence[Counter[tuple[str, ...]]],
) -> tuple[Counter[tuple[str, ...]], dict[tuple[str, ...], int], Counter[tuple[str, ...]]]:
    """Of each n-gram its highest count in any text, which text has it, and the highest in any other."""
    best, second = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    holder: dict[tuple[str, ...], int] = {}
    for at, own in enumerate(counts):
        for gram, count in own.items():
            if count > best[gram]:
                second[gram], best[gram], holder[gram] = best[gram], count, at
            elif count > second[gram]:
                second[gram] = count
    return best, holder, second


def _brevity(length: int, lengths: Sequence[int]) -> float:
    """The penalty against the other texts' lengths; `lengths` holds the text's own, and all in ascending order."""
    at = int(np.searchsorted(lengths, length))
    others = [*lengths[max(0, at - 1) : at], *lengths[at + 1 : at + 2]]
    nearest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length >= nearest else math.exp(1 - nearest / length)


def js_divergence(one: Sequence[Words], other: Sequence[Words]) -> float | None:
    """The Jensen-Shannon divergence of two samples' word frequencies, in bits: 0 the same, 1 no word in common."""
    counts = [Counter(word for words in texts for word in words) for texts in (one, other)]
    if not all(counts):
        return None
    vocabulary = sorted(counts[0] | counts[1])
    shares = [np.array([count[word] for word in vocabulary]) / count.total() for count in counts]
    mean = (shares[0] + shares[1]) / 2
    return float(sum(np.sum(share[share > 0] * np.log2(share[share > 0] / mean[share > 0])) for share in shares) / 2)
