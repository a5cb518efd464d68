"""Loops: an answer that says the same again and again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

from pydantic import Field

from posttrain.config.section import MOST
from posttrain.filters.base import Decide, Filter, FilterContext, Verdict, each_answer


def repeated_share(items: Sequence[Hashable]) -> float:
    """The share of items that stood before, 0 to 1."""
    return 1 - len(set(items)) / len(items) if items else 0.0


class Repetition(Filter):
    """Drops answers in which n-grams of words, or whole lines, repeat earlier ones.

    Figure: the share that repeats, 0 to 1, in the manner of Gopher's repetition rules (arXiv 2112.11446, table A1),
    but by number, not by characters. Text without spaces is taken by characters, so that '7777…' counts.
    Does not see: the same thought in other words.
    """

    use: Literal["repetition"] = "repetition"
    n: int = Field(default=4, ge=1, le=10_000, description="words in an n-gram")
    max_ngram_share: float = Field(default=0.4, ge=0, le=1, description="largest share of repeated n-grams kept")
    max_line_share: float = Field(default=0.4, ge=0, le=1, description="largest share of repeated lines kept")
    min_words: int = Field(default=12, ge=1, le=MOST, description="answers with fewer words are not looked at")

    def start(self, context: FilterContext) -> Decide:
        n = self.n

        def verdict(text: str) -> Verdict | None:
            words = _words(text)
            if len(words) < self.min_words:
                return None
            share = repeated_share(list(zip(*(words[i:] for i in range(n)), strict=False)))
            if share > self.max_ngram_share:
                return Verdict("repeated n-grams", share)
            if "\n" in text:
                share = repeated_share([line for line in map(str.strip, text.splitlines()) if line])
                if share > self.max_line_share:
                    return Verdict("repeated lines", share)
            return None

        return each_answer(verdict)


class Loop(Filter):
    """Drops answers that end in a loop, however much stands before it.

    Figure: how many times the last words stand there in a row; the last time may be cut off. Text without spaces is
    taken by characters. Does not see: a loop with a counter in it ("Step 1: … Step 2: …"), or one that was left again.
    """

    use: Literal["loop"] = "loop"
    min_times: int = Field(default=4, ge=2, le=MOST, description="so many times make a loop")
    min_words: int = Field(default=12, ge=1, le=MOST, description="a loop has at least so many words in all")
    max_period: int = Field(default=60, ge=1, le=MOST, description="longest repeated part, in words")

    def start(self, context: FilterContext) -> Decide:
        def verdict(text: str) -> Verdict | None:
            words = _words(text)
            for period in range(1, min(self.max_period, len(words) // self.min_times) + 1):
                length = _periodic(words, period)
                if length >= max(self.min_times * period, self.min_words):
                    return Verdict("ends in a loop", length / period)
            return None

        return each_answer(verdict)


def _words(text: str) -> Sequence[str]:
    """Words; the characters where there are hardly any spaces, so that '7777…' counts."""
    words = text.split()
    return text if len(words) * 30 < len(text) else words


def _periodic(words: Sequence[str], period: int) -> int:
    """How many of the last words there are in which each one is that of `period` places before, the first ones too."""
    start = len(words)
    while start > period and words[start - 1] == words[start - 1 - period]:
        start -= 1
    return len(words) - start + period
