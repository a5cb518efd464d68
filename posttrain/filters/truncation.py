"""Detects answers that stop in the middle, from their text alone: `format` uses the engine's finish reason."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from posttrain.filters.base import Decide, Filter, FilterContext, Verdict, each_answer

_CODE = re.compile(r"^[ \t]*(```+|~~~+)", re.MULTILINE)
_OPEN_WORDS = (
    "a", "an", "the", "and", "or", "nor", "but", "because", "although", "if", "whether", "while", "when", "of", "to",
    "from", "with", "without", "into", "onto", "between", "is", "are", "was", "than", "as", "my", "your", "his", "its",
    "our", "their",
)  # fmt: skip
_NO_PROSE = re.compile(r"\s*([-*+•#>|]|\d+[.)])")
_OPERATOR = re.compile(r"\s[=+*/×÷<>≤≥]$")  # by itself: C++, base64 and *emphasis* end in them
_FEW = 4  # words: "vitamin a" and "a" may be whole answers


class Truncated(Filter):
    """Drops answers that end in an open code block or bracket, or on a comma, a colon, an operator or a word nothing
    ends on.

    Figure: the answer's length in words. Does not see: an end after a whole sentence, in the middle of a word or on any
    other word (a list's last item ends so too; `prose` finds these in other lines), and takes a question that shall be
    gone on with for one that stops.
    """

    use: Literal["truncated"] = "truncated"
    words: tuple[str, ...] = Field(
        default=_OPEN_WORDS, strict=False, description="what no sentence ends on, as it is written"
    )
    prose: bool = Field(
        default=False,
        description="also drop answers whose last line ends on a letter, as prose ends on a mark (C4's rule, arXiv "
        "1910.10683, section 2.2); lists, tables, headings and lines of up to 4 words are let pass",
    )

    def start(self, context: FilterContext) -> Decide:
        last_words = frozenset(self.words)

        def fault(text: str) -> str | None:
            fences = [fence[0][0] for fence in _CODE.finditer(text)] if "```" in text or "~~~" in text else []
            if len(fences) % 2:
                return "open code block"
            end = text.rstrip()
            if not end or end.endswith(":("):
                return None
            if end[-1] in ",;:(（[、，：-–—" or _OPERATOR.search(end):
                return "stops in mid-sentence"
            if (words := end.rsplit(maxsplit=_FEW))[-1] in last_words and len(words) > _FEW:
                return "stops in mid-sentence"
            line = end.rpartition("\n")[2]
            opened = line.rfind("(")
            if self.prose and end[-1].isalpha() and len(line.split()) > _FEW and not _NO_PROSE.match(line):
                return "stops in mid-sentence"
            if opened > line.rfind(")") and line[opened - 1 : opened] != ":" and line[-1] not in ".!?":  # no :(
                return "open bracket"
            return None

        def verdict(text: str) -> Verdict | None:
            reason = fault(text)
            return Verdict(reason, len(text.split())) if reason else None

        return each_answer(verdict)
