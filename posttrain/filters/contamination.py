"""Contamination: drops rows whose prompts overlap with evaluation prompts."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

from pydantic import Field

from posttrain.errors import RecipeError
from posttrain.filters.base import Decide, Filter, FilterContext, Verdict, dropped

# Numbers whole, words, and the signs that make 3+4 another question than 3-4. Other punctuation is not compared.
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d]+|[-+*/^=<>%]")


class Overlap(Filter):
    """Drops rows whose prompt is one of the evaluation prompts, or holds much of one.

    Case, white space and punctuation are not compared. Figure: 1 for the same prompt; otherwise the largest share of
    one evaluation prompt's tokens that stand in n-grams which the row's prompt has too (the measure of Llama 3,
    section 5.1.4; 8-grams and more than half as in Tülu 3, arXiv 2411.15124, section 7.1). A prompt shorter than
    `n` tokens is only compared as a whole. Does not see: the same question in other words, evaluation text in answers.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"evaluation_prompts"})
    use: Literal["overlap"] = "overlap"
    n: int = Field(default=8, ge=1, le=10_000, description="tokens in an n-gram")
    max_share: float = Field(
        default=0.5, ge=0, le=1, description="largest share of an evaluation prompt that may stand in a prompt"
    )

    def start(self, context: FilterContext) -> Decide:
        if not context.evaluation_prompts:
            raise RecipeError(
                "the filter 'overlap' has no evaluation prompts to compare with",
                hint="name evaluation sets that are not empty, or leave the filter out",
                rule="filter-no-evaluation",
            )
        verdict = overlap(context.evaluation_prompts, self.n, self.max_share)
        cached = functools.lru_cache(maxsize=1)(verdict)  # the K rows of a prompt stand together
        return lambda rows: dropped(map(cached, rows.prompts))


def overlap(evaluation_prompts: Iterable[str], n: int, max_share: float) -> Callable[[str], Verdict | None]:
    """What `Overlap` says of a prompt, as a function."""
    whole: dict[tuple[str, ...], int] = {}  # the tokens of each evaluation prompt, and its number
    for prompt in evaluation_prompts:
        whole.setdefault(tuple(_tokens(prompt)), len(whole))
    lengths = [len(tokens) for tokens in whole]
    # Where an n-gram stands: the evaluation prompt's number, and a bit for each of its tokens that it covers.
    places: defaultdict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for tokens, number in whole.items():
        for position, gram in enumerate(_grams(tokens, n)):
            places[gram].append((number, (1 << n) - 1 << position))

    def verdict(prompt: str) -> Verdict | None:
        tokens = tuple(_tokens(prompt))
        if tokens in whole:
            return Verdict("evaluation prompt", 1.0)
        covered: defaultdict[int, int] = defaultdict(int)
        for gram in _grams(tokens, n):
            for number, bits in places.get(gram, ()):
                covered[number] |= bits
        share = max((bits.bit_count() / lengths[number] for number, bits in covered.items()), default=0.0)
        return Verdict(f"{n}-gram overlap", share) if share > max_share else None

    return verdict


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())


def _grams(tokens: tuple[str, ...], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(tokens[i:] for i in range(n)), strict=False)
