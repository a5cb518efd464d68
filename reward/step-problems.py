"""Checks a problem of several steps, each a line such as "12 + 5 = 17", with "Answer: N" as the last line.

`correct` gives 1.0 for the right answer, else 0.0, however it was found. `steps_right` gives the share of the problem's
steps that are right before the first wrong one. A step is right if it reckons with numbers of the prompt, earlier
results, or 2, which halves and doubles; if it reckons rightly; and if its result is the value that the usual solution
has there. Any other line is wrong.
"""

from __future__ import annotations

import re

_ANSWER = re.compile(r"answer:", re.IGNORECASE)
_STATED = re.compile(r"^Answer:\s*(-?\d{1,9})\.?\s*\Z", re.MULTILINE)
_STEP = re.compile(r"(-?\d{1,9}) ([-+*/]) (-?\d{1,9}) = (-?\d{1,9})\.?")


def correct(prompts: list, completions: list, answer: list[str], **columns: list) -> list[float]:
    """One score for each completion, a list of one assistant message; `answer` is the column of the prompt set."""
    return [
        float((found := _stated(completion[-1]["content"])) is not None and found == int(expected))
        for completion, expected in zip(completions, answer, strict=True)
    ]


def steps_right(prompts: list, completions: list, steps: list[str], **columns: list) -> list[float]:
    """One score for each completion; `steps`: the values after each step, with spaces between."""
    found = []
    for prompt, completion, values in zip(prompts, completions, steps, strict=True):
        text, expected = completion[-1]["content"], [int(value) for value in values.split()]
        wrong = _first_wrong(prompt[-1]["content"], text, expected)
        right = len(_lines(text)) if wrong is None else wrong
        found.append(min(right, len(expected)) / len(expected))
    return found


def _first_wrong(prompt: str, text: str, expected: list[int]) -> int | None:
    """The place of the first wrong step, from 0; None where all that are there are right."""
    known = {2, *map(int, re.findall(r"\d+", prompt))}
    for at, line in enumerate(_lines(text)):
        result = _result(line, known)
        if result is None or at >= len(expected) or result != expected[at]:
            return at
        known.add(result)
    return None


def _lines(text: str) -> list[str]:
    """The lines before the answer that have something in them."""
    return [line.strip() for line in text.partition("Answer:")[0].splitlines() if line.strip()]


def _stated(text: str) -> int | None:
    """The answer that the last line states; None where there is none, or more than one."""
    found = _STATED.search(text)
    return int(found[1]) if found and len(_ANSWER.findall(text)) == 1 else None


def _result(line: str, known: set[int]) -> int | None:
    """Of a right calculation with known numbers; None for another line."""
    found = _STEP.fullmatch(line)
    if found is None:
        return None
    left, sign, right, result = int(found[1]), found[2], int(found[3]), int(found[4])
    if not {left, right} <= known:
        return None
    if sign == "/":
        return result if right and result * right == left else None
    return result if {"+": left + right, "-": left - right, "*": left * right}[sign] == result else None
