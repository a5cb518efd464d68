"""The steps of an answer: where each ends, in characters and in tokens. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence


def step_ends(text: str, separator: str) -> list[int]:
    """Where each step ends, in characters, with what separates it from the next.

    `separator`: a regular expression. A step without a letter or digit belongs to the one before it; before the first
    one, to the first. None in a text that has neither.
    """
    found, start = list[int](), 0
    for end in [*(match.end() for match in re.finditer(separator, text)), len(text)]:
        if re.search(r"\w", text[start:end]):
            found.append(end)
            start = end
        elif found and end > start:
            found[-1] = start = end
    return found


def steps(text: str, separator: str) -> list[str]:
    """The text of each step."""
    ends = step_ends(text, separator)
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def tokens_of_steps(ids: Sequence[int], decode: Callable[[Sequence[int]], str], separator: str) -> list[int]:
    """How many tokens each step has. A token in which one step ends and another begins counts to the first, so that a
    short step may have none. Tokens after the last step, such as the one that ends the answer, count to none.

    `decode`: the text of token ids, without special ones.
    """
    found, before = list[int](), 0
    for end in step_ends(decode(ids), separator):
        at = bisect_left(range(len(ids) + 1), end, lo=before, key=lambda count: len(decode(ids[:count])))
        found.append(at - before)
        before = at
    return found
