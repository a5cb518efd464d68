"""Filters that drop what the corpus already holds."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Literal

from posttrain.filters.base import AcrossRounds, Decide, FilterContext, Verdict
from posttrain.filters.rows import Rows


class ExactDuplicates(AcrossRounds):
    """Keeps the first of all rows with the same prompt and answer; white space is not compared.

    Figure: which copy it is (2: the second). State: a 64-bit hash a row; with a million rows the chance that any two
    different ones collide is 3 in 10^8.
    """

    use: Literal["exact-duplicates"] = "exact-duplicates"

    def start(self, context: FilterContext) -> Decide:
        earlier = {key for rows in self.earlier(context) for key in _keys(rows)}
        copies = dict.fromkeys(earlier, 1)

        def decide(rows: Rows) -> dict[int, Verdict]:
            verdicts = {}
            for i, key in enumerate(_keys(rows)):
                copy = copies[key] = copies.get(key, 0) + 1
                if copy > 1:
                    verdicts[i] = Verdict("duplicate of an earlier round" if key in earlier else "duplicate", copy)
            return verdicts

        return decide


def _keys(rows: Rows) -> Iterator[bytes]:
    for prompt, answer in zip(rows.prompts, rows.answers, strict=True):
        plain = f"{' '.join(prompt.split())}\0{' '.join(answer.split())}"
        yield blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest()
