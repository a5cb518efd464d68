"""The interface of rewards; `kinds` lists its implementations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from posttrain.data.messages import Message, Prompt

Conversations = Sequence[Sequence[Message]]  # the messages of a prompt, or of an answer, for each row
Columns = Mapping[str, Sequence[Any]]  # of the prompt set, by name: a value for each row


@dataclass(frozen=True)
class Runtime:
    """How a reward is asked; decides no score. `minutes`: that one call of a function may take, None: however long.
    `folder`: where what a judge said is kept, None: nowhere."""

    minutes: float | None = None
    folder: Path | None = None


DEFAULT = Runtime()


class RewardBase(Protocol):
    """What a function of one answer (`RewardFunction`) and one of two (`pairwise.Pairwise`) have in common. Picklable:
    it is loaded once and asked in several processes."""

    reads_columns: ClassVar[bool]  # if not, it is probed once, and otherwise with each prompt set

    @property
    def name(self) -> str:
        """Its name in metrics and tables."""
        ...

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides a score; it is in the key of what was scored."""
        ...

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises RewardError when the prompt set lacks a column that it cannot do without."""

    def probe(self, prompts: Sequence[Prompt]) -> None:
        """Asks once, so that a reward that cannot judge fails before anything is sampled.

        Raises RewardError or EngineError.
        """


class RewardFunction(RewardBase, Protocol):
    """Judges one answer at a time."""

    def __call__(self, prompts: Conversations, completions: Conversations, columns: Columns) -> list[float | None]:
        """One score, or None, for each row. A right answer has a score of at least 0.5: see `combine`."""
        ...

    def golden_cases(self) -> str | None:
        """What `posttrain check` says of answers whose scores are known; None: there are none for this kind.

        Raises RewardError where one does not come out.
        """
