"""Is a GSM8K solution worked out and closed as asked? In quarters, whatever the answer is:

- it writes at least one calculation such as `48 / 2 = 24`
- every calculation that it writes is right
- `####` stands once, with a number after it
- nothing follows that line

It tells answers apart where the checker (gsm8k.py) gives all of them the same, and never outweighs it at a low weight.
"""

from __future__ import annotations

import re

_N = r"\$?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?"
_CALCULATION = re.compile(rf"(?<![\w.(*/+-])({_N}(?:\s*[-+*/]\s*{_N})+)\s*=\s*({_N})(?![\w/(]|\.\d)")
_CLOSED = re.compile(rf"####\s*{_N}[ \t]*(?P<after>.*)", re.DOTALL)
_TOLERANCE = 0.01  # of the value: solutions round


def worked_out(prompts: list, completions: list, **columns: list) -> list[float | None]:
    """One score for each completion, a list of one assistant message."""
    return [_score(completion[-1]["content"]) for completion in completions]


def _score(text: str) -> float:
    right = [_right(left, result) for left, result in _CALCULATION.findall(text)]
    closed = _CLOSED.search(text) if text.count("####") == 1 else None
    checks = [bool(right), bool(right) and all(right), closed is not None, closed is not None and not closed["after"]]
    return sum(checks) / len(checks)


def _right(left: str, result: str) -> bool:
    try:
        value, stated = _value(left), _number(result)
    except ZeroDivisionError:
        return False
    return abs(value - stated) <= _TOLERANCE * max(abs(value), 1)


def _value(terms: str) -> float:
    """`2 + 3 * 4` as 14: products first, then sums, each from the left."""
    parts = re.findall(rf"([-+*/]?)\s*({_N})", terms)
    total, product = 0.0, _number(parts[0][1])
    for sign, text in parts[1:]:
        number = _number(text)
        if sign == "*":
            product *= number
        elif sign == "/":
            product /= number
        else:
            total, product = total + product, -number if sign == "-" else number
    return total + product


def _number(text: str) -> float:
    plain = float(text.strip("$%").replace("$", "").replace(",", "").strip())
    return plain / 100 if text.endswith("%") else plain
