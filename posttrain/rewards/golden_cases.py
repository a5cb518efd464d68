"""Answers of which the writer of a reward knows what must come out, in a file beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Protocol

from posttrain.errors import RewardError
from posttrain.rewards.protocol import RewardFunction
from posttrain.rewards.source import text_of


class InFile(RewardFunction, Protocol):
    """A reward that is a function in a file."""

    @property
    def file(self) -> str: ...

    @property
    def function(self) -> str: ...


def asked(reward: InFile) -> str:
    """How many golden cases come out. Raises RewardError that lists those that do not."""
    path = _path(reward)
    if not path.is_file():
        return f"{Path(reward.file).name} has no golden cases"
    wrong = wrong_cases(reward)
    if wrong:
        hint = "the reward or the case is wrong"
        raise RewardError("; ".join(wrong[:3]), file=None, hint=hint, rule="reward-cases")
    return f"{Path(reward.file).name} gives {len(path.read_text('utf-8').splitlines())} golden cases"


def wrong_cases(reward: InFile) -> list[str]:
    """The golden cases of the reward's file (`NAME.cases.jsonl` beside it) with another score than expected.

    A row: {"function", "prompt": text or messages, "completion": text, "columns": {…}, "expected": number or null}.
    Raises RewardError when a row cannot be read.
    """
    path = _path(reward)
    wrong = []
    for line, text in enumerate(text_of(path).splitlines() if path.is_file() else [], 1):
        try:
            case = json.loads(text)
            if case.get("function", reward.function) != reward.function:
                continue
            prompt, completion, expected = case["prompt"], case["completion"], case["expected"]
        except (ValueError, KeyError, AttributeError) as error:
            hint = "keys: function, prompt, completion, columns, expected"
            said = f"not a golden case: {error}"
            raise RewardError(said, file=str(path), line=line, hint=hint, rule="reward-case") from None
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        columns = {name: [value] for name, value in case.get("columns", {}).items()}
        (score,) = reward([messages], [[{"role": "assistant", "content": completion}]], columns)
        same = score == expected if score is None or expected is None else math.isclose(score, expected, abs_tol=1e-9)
        if not same:
            wrong.append(f"{path}:{line}: {reward.function}() gave {score}, expected {expected}")
    return wrong


def _path(reward: InFile) -> Path:
    return Path(reward.file).with_suffix(".cases.jsonl")
