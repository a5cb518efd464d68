"""Counts unsafe words. A first look, no judgement: see what it misses."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from posttrain.config.keys import KeyedAs
from posttrain.config.section import MOST
from posttrain.errors import DataError
from posttrain.filters.base import Decide, Filter, FilterContext, Verdict
from posttrain.filters.rows import Rows
from posttrain.storage.regular_files import read_text

# Ours, short, English: words that are seldom said in passing. A `*` after a word stands for any ending.
WORDS = (
    "porn*", "pornograph*", "xxx video*", "blowjob*", "handjob*", "cumshot*", "gangbang*", "masturbat*", "nsfw",
    "child porn*", "rape", "raped", "raping", "rapist*", "molest*", "incest*", "bestiality",
    "kill yourself", "kill myself", "kys", "hang yourself", "cut yourself", "suicide method*", "end your life",
    "pipe bomb*", "build a bomb", "make a bomb", "nerve agent*", "sarin", "ricin", "mustard gas", "behead*",
    "mass shooting*", "school shooting*", "ethnic cleansing", "gas the", "heil hitler", "white power",
    "cook* meth", "meth lab*", "methamphetamine*", "fentanyl", "ransomware", "keylogger*", "credit card dump*",
)  # fmt: skip


class UnsafeWords(Filter):
    """Drops rows with more than `max_words` unsafe words, of a short English list and of the user's own.

    Figure: how many there are. Does not see: other languages, other spellings (`p0rn`), harm in plain words ("how do I
    get into his account"), who is meant and why: a history of a war, a nurse's advice and a refusal that repeats the
    question hold the same words as what they are about. It is no safety filter: a classifier or a judge is.
    """

    use: Literal["unsafe-words"] = "unsafe-words"
    max_words: int = Field(default=1, ge=0, le=MOST, description="so many are let pass")
    look_at: Literal["answer", "prompt", "both"] = Field(default="both", description="which text is counted in")
    words: tuple[str, ...] = Field(
        default=(), strict=False, description="further words or phrases; a * after a word stands for any ending"
    )
    file: Annotated[str | None, KeyedAs("words")] = Field(
        default=None, description="a text file of further words, one a line; # opens a comment"
    )

    def external_hashes(self) -> dict[str, str]:
        return {"words": sha256(json.dumps(self._further()).encode()).hexdigest()} if self.file else {}

    def _further(self) -> tuple[str, ...]:
        if self.file is None:
            return self.words
        try:
            lines = read_text(Path(self.file)).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the word list of 'unsafe-words' cannot be read: {error}", file=self.file, rule="filter-word-list"
            ) from None
        return (*self.words, *(word for line in lines if (word := line.partition("#")[0].strip())))

    def start(self, context: FilterContext) -> Decide:
        words = [word.lower() for word in (*WORDS, *self._further()) if word.strip("* ")]
        pattern = re.compile(rf"\b(?:{'|'.join(map(_pattern, words))})")
        openings = {word.split()[0].rstrip("*") for word in words}  # to look for these is ten times as fast

        def count(text: str) -> int:
            text = text.lower()
            return len(pattern.findall(text)) if any(opening in text for opening in openings) else 0

        def decide(rows: Rows) -> dict[int, Verdict]:
            texts = {"answer": [rows.answers], "prompt": [rows.prompts], "both": [rows.prompts, rows.answers]}
            counts = [sum(map(count, row)) for row in zip(*texts[self.look_at], strict=True)]
            return {i: Verdict("unsafe words", number) for i, number in enumerate(counts) if number > self.max_words}

        return decide


def _pattern(phrase: str) -> str:
    words = [re.escape(word.rstrip("*")) + r"\w*" * word.endswith("*") for word in phrase.split()]
    return r"\s+".join(words) + r"\b"
