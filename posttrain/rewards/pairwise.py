"""A judge that says which of two answers is better: a function in a file, as rewards are.

    def judge(prompts, first, second, **columns) -> list[float | None]: ...

`first` and `second` are lists of message lists. It returns, for each prompt, the probability that the first answer is
the better one, or None for no score. Judges have a position bias, so each pair is asked about twice, sides swapped.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config import RewardEntry
from posttrain.errors import RewardError
from posttrain.rewards import kinds
from posttrain.rewards.functions import FileFunction, load_as
from posttrain.rewards.protocol import DEFAULT, Columns, Conversations, RewardFunction, Runtime
from posttrain.rewards.source import arguments


class Pairwise(FileFunction):
    """A function that compares two answers."""

    arguments = ("prompts", "first", "second")
    probes = (("I do not know.", "42"), ("42", "I do not know."))

    def __call__(
        self, prompts: Conversations, first: Conversations, second: Conversations, columns: Columns
    ) -> list[float | None]:
        """How far the first answer is preferred, in [0, 1], or None, for each prompt: see `agreed`. Raises as `ask`
        does."""
        there = self.ask([prompts, first, second], columns)
        back = self.ask([prompts, second, first], columns)
        return [agreed(one, other) for one, other in zip(there, back, strict=True)]

    def ask(self, given: Sequence[Conversations], columns: Columns) -> list[float | None]:
        """The function's answer, once. Raises RewardError as a reward does, and where it is no probability."""
        said = super().ask(given, columns)
        for value in said:
            if value is not None and not 0 <= value <= 1:
                raise RewardError(
                    f"{self.function}() returned {value}, which is no probability",
                    file=self.file,
                    hint="a number in [0, 1]: how probable it is that the first answer is better",
                    rule="reward-probability",
                )
        return said


def load(entry: RewardEntry, runtime: Runtime = DEFAULT) -> RewardFunction | Pairwise:
    """The judge of an entry: pairwise where its function takes `first` and `second` and no `completions`.

    Raises RewardError when there is no such file or function, or it cannot be parsed.
    """
    named = arguments(entry) if entry.use.endswith(".py") else set()
    if {"first", "second"} <= named and "completions" not in named:
        return load_as(Pairwise, entry, runtime)
    return kinds.load(entry, runtime)


def agreed(there: float | None, back: float | None) -> float | None:
    """What a judge of pairs prefers who was asked twice: P(first better), and the same with the sides swapped.

    The mean of both; a tie where the two verdicts contradict each other, as one for the same side does.
    """
    if there is None or back is None:
        return None
    if (there - 0.5) * (0.5 - back) < 0:
        return 0.5
    return (there + 1 - back) / 2
