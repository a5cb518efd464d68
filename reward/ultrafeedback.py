"""How much nearer an answer is to the chosen one than to the rejected one, by their words: a stand-in for a judge.

Near is the F1 of the words in common, each as often as it stands there (ROUGE-1). 0.5 is as near to both; 1 is the
chosen one, word for word, with nothing of the rejected. Rows without both answers get no opinion. It knows nothing of
truth or tone, and a long answer has more words in common with any other: a judge is better.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any


def nearer_to_chosen(
    prompts: list[Any], completions: list[Any], chosen: list[Any], rejected: list[Any], **columns: list[Any]
) -> list[float | None]:
    """One score in [0, 1] a row, or None. `chosen`, `rejected`: text, or messages that end with the answer."""
    return [
        None
        if good is None or bad is None
        else 0.5 + (_near(_said(answer), _said(good)) - _near(_said(answer), _said(bad))) / 2
        for answer, good, bad in zip(completions, chosen, rejected, strict=True)
    ]


def _said(answer: Any) -> Counter[str]:
    """The words of an answer, in lower case, and how often each."""
    text = answer if isinstance(answer, str) else answer[-1]["content"] if answer else ""
    return Counter(re.findall(r"\w+", text.lower()))


def _near(one: Counter[str], other: Counter[str]) -> float:
    """F1 of the words in common: 2 · common / (words of one + words of the other); 0 where there are none."""
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 0.0
