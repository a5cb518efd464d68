"""Checks a problem of several steps, each a line such as "12 + 5 = 17", with "Answer: N" at the end.

`correct` gives 1.0 for the right answer, else 0.0, however it was found. `steps_right` gives the share of the problem's
steps that are right before the first wrong one. A step is right if its calculation is, and its result is the value that
the problem has after that step; a line that is no calculation is wrong.
"""

from __future__ import annotations

import re

_STATED = re.compile(r"Answer:\s*(-?\d+)\.?\s*\Z")
_STEP = re.compile(r"(-?\d+) ([-+*/]) (-?\d+) = (-?\d+)\.?")


def correct(prompts: list, completions: list, answer: list[str], **columns: list) -> list[float]:
    """One score for each completion, a list of one assistant message; `answer` is the column of the prompt set."""
    return [
        float((found := stated(completion[-1]["content"])) is not None and found == int(expected))
        for completion, expected in zip(completions, answer, strict=True)
    ]


def steps_right(prompts: list, completions: list, steps: list[str], **columns: list) -> list[float]:
    """One score for each completion; `steps`: the values after each step, with spaces between."""
    found = []
    for completion, values in zip(completions, steps, strict=True):
        expected = [int(value) for value in values.split()]
        wrong = first_wrong(completion[-1]["content"], expected)
        done = len(lines(completion[-1]["content"]))
        found.append(min(done if wrong is None else wrong, len(expected)) / len(expected))
    return found


def first_wrong(text: str, expected: list[int]) -> int | None:
    """The place of the first wrong step, from 0; None where all that are there are right."""
    for at, line in enumerate(lines(text)):
        if at >= len(expected) or _result(line) != expected[at]:
            return at
    return None


def lines(text: str) -> list[str]:
    """The lines before the answer that have something in them."""
    return [line.strip() for line in text.partition("Answer:")[0].splitlines() if line.strip()]


def stated(text: str) -> int | None:
    """The answer that is stated; None where there is none, or more than one."""
    found = _STATED.search(text)
    return int(found[1]) if found and text.count("Answer:") == 1 else None


def _result(line: str) -> int | None:
    """Of a right calculation; None for another line."""
    found = _STEP.fullmatch(line)
    if found is None:
        return None
    left, sign, right, result = int(found[1]), found[2], int(found[3]), int(found[4])
    if sign == "/":
        return result if right and result * right == left else None
    return result if {"+": left + right, "-": left - right, "*": left * right}[sign] == result else None
