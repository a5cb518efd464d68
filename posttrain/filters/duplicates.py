"""Filters that drop what the corpus already holds."""

from __future__ import annotations

from hashlib import blake2b
from typing import ClassVar, Literal

from posttrain.filters.base import Filter, FilterContext, Judge, Scope, Verdict
from posttrain.filters.rows import Rows


class ExactDuplicates(Filter):
    """Keeps the first of all rows with the same prompt and answer; white space is not compared.

    Figure: which copy it is (2: the second). State: a 64-bit hash a row; with a million rows the chance that any two
    different ones collide is 3 in 10^8.
    """

    scope: ClassVar[Scope] = "corpus"
    use: Literal["exact-duplicates"] = "exact-duplicates"

    def start(self, context: FilterContext) -> Judge:
        copies: dict[bytes, int] = {}

        def judge(rows: Rows) -> dict[int, Verdict]:
            verdicts = {}
            for i, (prompt, answer) in enumerate(zip(rows.prompts, rows.answers, strict=True)):
                plain = f"{' '.join(prompt.split())}\0{' '.join(answer.split())}"
                key = blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                copy = copies[key] = copies.get(key, 0) + 1
                if copy > 1:
                    verdicts[i] = Verdict("duplicate", copy)
            return verdicts

        return judge
