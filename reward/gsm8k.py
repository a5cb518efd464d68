"""Checks the final answer of a GSM8K solution: 1.0 when it equals the reference's, else 0.0. Needs posttrain[math].

The final answer is what stands after `####`, as in GSM8K's own solutions; else in the last `\\boxed{}`; else the number
on the last line that says "answer". It must be one number: a completion that names several, there or after several
`####`, is wrong whatever the last one is. Whether two answers are equal is math-verify's to say (1,000 = 1000.00,
$18 = 18, 1/2 = 0.5). Nothing marked as the answer counts as wrong, even where the right number stands somewhere.
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

_NUMBER = re.compile(r"\\[dt]?frac\{-?\d+\}\{\d+\}|-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?")
_ANSWER_LINE = re.compile(r"\banswer\b(?P<rest>.*)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_NO_PLAIN_NUMBER = re.compile(r"\d\s*(?:\^|\*\*)\s*\d|\d{30}")  # powers, endless digits
_LONGEST = 200


def correct(prompts: list, completions: list, answer: list[str | None], **columns: list) -> list[float | None]:
    """One score for each completion, a list of one assistant message. No score where `answer` is None."""
    return [
        None if reference is None else float(_right(completion[-1]["content"], reference))
        for completion, reference in zip(completions, answer, strict=True)
    ]


def _right(text: str, reference: str) -> bool:
    expected = _parsed(reference.rpartition("####")[2])
    if not expected:
        raise ValueError(f"the reference answer {reference[-40:]!r} holds no number")
    stated = _final_answer(text)
    found = _parsed(stated) if stated is not None else ()
    return bool(found) and verify(list(expected), list(found), timeout_seconds=_seconds())


def _final_answer(text: str) -> str | None:
    """The one number that a completion states as its answer; None when it states none, or several."""
    marked = [part.strip().split("\n")[0] for part in text.split("####")[1:]]
    if not marked:
        marked = _BOXED.findall(text)[-1:]
    if not marked:
        marked = [match["rest"] for match in _ANSWER_LINE.finditer(text)][-1:]
    numbers = {number for part in marked for number in _numbers(part)}
    return numbers.pop() if len(numbers) == 1 else None


def _numbers(part: str) -> list[str]:
    if len(part) > _LONGEST or _NO_PLAIN_NUMBER.search(part):
        return []
    return [re.sub(r"[\s,$]", "", number) for number in _NUMBER.findall(part)]


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    numbers = _numbers(text)
    return tuple(parse(f"${numbers[-1]}$", parsing_timeout=_seconds())) if numbers else ()


def _seconds() -> Any:
    """math-verify stops itself by an alarm signal, which only the main thread may set."""
    return 5 if threading.current_thread() is threading.main_thread() else None
