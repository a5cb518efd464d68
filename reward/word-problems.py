"""Checks the answer of a word problem: 1.0 when the completion ends in "Answer: N" with the right N, else 0.0.

A completion that names more than one answer is wrong, whatever the last one says. A row without an answer (a request
for a note) gets no score.
"""

from __future__ import annotations

import re

_STATED = re.compile(r"Answer:\s*(-?\d+)\.?\s*\Z")


def correct(prompts: list, completions: list, answer: list[str | None], **columns: list) -> list[float | None]:
    """One score for each completion, a list of one assistant message; `answer` is the column of the prompt set."""
    return [
        None if expected is None else _score(completion[-1]["content"], expected)
        for completion, expected in zip(completions, answer, strict=True)
    ]


def _score(text: str, expected: str) -> float:
    stated = _STATED.search(text)
    return float(stated is not None and text.count("Answer:") == 1 and int(stated[1]) == int(expected))
