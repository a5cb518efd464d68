"""The steps of an answer: where each ends, in characters and in tokens. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence


def where_steps_end(text: str, ends: Sequence[str]) -> list[int]:
    """Where each step ends, in characters, with what separates it from the next.

    `ends`: texts that end a step, one or several of them in a row. What has no letter or digit is no step, and belongs
    to the one before it; before the first one, to the first. None in a text without any.
    """
    longest_first = sorted(ends, key=len, reverse=True)
    found, start, between = list[int](), 0, f"(?:{'|'.join(map(re.escape, longest_first))})+"
    for end in [*(match.end() for match in re.finditer(between, text)), len(text)]:
        if re.search(r"[^\W_]", text[start:end]):
            found.append(end)
            start = end
        elif found and end > start:
            found[-1] = start = end
    return found


def tokens_of_steps(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], ends: Sequence[str], most: int | None = None
) -> list[int]:
    """How many tokens each step has. A token in which one step ends and another begins counts to the first, so that a
    short step may have none. Tokens after the last step count to none.

    `decode`: the text of token ids, without special ones; U+FFFD for what is not a whole character yet. `most`: of so
    many steps alone, the first ones.
    """

    def whole(count: int) -> int:
        return len(decode(ids[:count]).rstrip("\ufffd"))

    found, before = list[int](), 0
    for end in where_steps_end(decode(ids), ends)[:most]:
        at = min(bisect_left(range(len(ids) + 1), end, lo=before, key=whole), len(ids))
        found.append(at - before)
        before = at
    return found
