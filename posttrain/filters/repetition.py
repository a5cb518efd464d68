"""Loops: an answer that says the same again and again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

from pydantic import Field

from posttrain.filters.base import Filter, FilterContext, Judge, Verdict
from posttrain.filters.rows import Rows


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
    n: int = Field(default=4, ge=1, description="words in an n-gram")
    max_ngram_share: float = Field(default=0.4, ge=0, le=1, description="largest share of repeated n-grams kept")
    max_line_share: float = Field(default=0.4, ge=0, le=1, description="largest share of repeated lines kept")
    min_words: int = Field(default=12, ge=1, description="answers with fewer words are not looked at")

    def start(self, context: FilterContext) -> Judge:
        n = self.n

        def verdict(text: str) -> Verdict | None:
            words: Sequence[str] = text.split()
            if len(words) * 30 < len(text):
                words = text
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

        def judge(rows: Rows) -> dict[int, Verdict]:
            return {i: found for i, found in enumerate(map(verdict, rows.answers)) if found is not None}

        return judge
