"""A judge that says which of two answers is better: a function in a file, as rewards are.

    def judge(prompts, first, second, **columns) -> list[float | None]: ...

`first` and `second` are lists of message lists. It returns, for each prompt, the probability that the first answer is
the better one, or None for no score. Judges have a position bias, so each pair is asked about twice, sides swapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain.config import RewardEntry
from posttrain.data.messages import Message, Prompt
from posttrain.errors import RewardError
from posttrain.rewards import functions, kinds
from posttrain.rewards.functions import Reward
from posttrain.rewards.protocol import DEFAULT, RewardFunction, Runtime
from posttrain.rewards.source import arguments

PAIRWISE = ("prompts", "first", "second")
Answers = Sequence[Sequence[Message]]


@dataclass(frozen=True)
class Pairwise:
    """One such function. Picklable, as a Reward is."""

    reads_columns: ClassVar[bool] = True

    function: Reward

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def identity(self) -> str:
        return self.function.identity

    def __call__(
        self, prompts: Answers, first: Answers, second: Answers, columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """How far the first answer is preferred, in [0, 1], or None, for each prompt: see `winrate.agreed`.

        Raises RewardError as a reward does, and where what it returned is no probability.
        """
        there = self._ask(prompts, first, second, columns)
        back = self._ask(prompts, second, first, columns)
        return [agreed(one, other) for one, other in zip(there, back, strict=True)]

    def _ask(
        self, prompts: Answers, first: Answers, second: Answers, columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        said = self.function.ask(dict(zip(PAIRWISE, (prompts, first, second), strict=True)), columns)
        for value in said:
            if value is not None and not 0 <= value <= 1:
                raise RewardError(
                    f"{self.function.function}() returned {value}, which is no probability",
                    file=self.function.file,
                    hint="a number in [0, 1]: how probable it is that the first answer is better",
                    rule="reward-probability",
                )
        return said

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises RewardError when the prompt set lacks a column that the function cannot do without."""
        self.function.check_columns(columns)

    def probe(self, prompts: Sequence[Prompt]) -> None:
        """Calls the function on a few prompts and made-up answers, so that it fails before anything is sampled."""
        few = list(prompts[:4])
        if few:
            self.check_columns(list(few[0].columns))
            columns = {name: [prompt.columns[name] for prompt in few] for name in few[0].columns}
            answers = [[{"role": "assistant", "content": text}] for text in ("I do not know.", "42")]
            self([prompt.messages for prompt in few], answers[:1] * len(few), answers[1:] * len(few), columns)


def load(entry: RewardEntry, runtime: Runtime = DEFAULT) -> RewardFunction | Pairwise:
    """The judge of an entry: pairwise where its function takes `first` and `second` and no `completions`.

    Raises RewardError when there is no such file or function, or it cannot be parsed.
    """
    named = arguments(entry) if entry.use.endswith(".py") else set()
    if {"first", "second"} <= named and "completions" not in named:
        return Pairwise(functions.load(entry, runtime, PAIRWISE))
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
