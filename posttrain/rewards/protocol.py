"""What every kind of reward can do: see `kinds` for which kinds there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from posttrain.data.messages import Message, Prompt


@dataclass(frozen=True)
class Runtime:
    """How a reward is asked; decides no score. `minutes`: that one call of a function may take, None: however long.
    `folder`: where what a judge said is kept, None: nowhere."""

    minutes: float | None = None
    folder: Path | None = None


DEFAULT = Runtime()


class Asked(Protocol):
    """What judges answers: one at a time (`RewardFunction`) or two (`pairwise.Pairwise`). Picklable: each process that
    scores loads it by itself."""

    @property
    def name(self) -> str:
        """What its figures are called."""
        ...

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides a score; it is in the key of what was scored."""
        ...

    @property
    def reads_columns(self) -> bool:
        """Whether it is given the prompts' columns: then it is probed with each prompt set, and otherwise once."""
        ...

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises RewardError when the prompt set lacks a column that it cannot do without."""
        ...

    def probe(self, prompts: Sequence[Prompt]) -> None:
        """Asks once, so that a reward that cannot judge fails before anything is sampled.

        Raises RewardError or EngineError.
        """
        ...


class RewardFunction(Asked, Protocol):
    """Judges one answer at a time."""

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        completions: Sequence[Sequence[Message]],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float | None]:
        """One score, or None, for each row. A right answer has a score of at least 0.5: see `combine`."""
        ...

    def golden_cases(self) -> str | None:
        """What `posttrain check` says of answers whose scores are known; None: there are none for this kind.

        Raises RewardError where one does not come out.
        """
        ...
