"""What a method of search asks for and is given. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Path = tuple[int, ...]  # token ids from the beginning of an answer to the end of a step


@dataclass(frozen=True)
class Drawn:
    """What was sampled behind the beginning of an answer.

    `step`: the tokens up to the end of its first step; `rest`: those after it, none where sampling ends with a step.
    `ended`: whether the answer came to its end. `value`: the checker's score of the whole answer, None where there is
    none. `score`: of the step, and `logprob`: of its tokens under the policy, both sums; None where they are not known.
    """

    step: Path
    rest: Path = ()
    ended: bool = False
    value: float | None = None
    score: float | None = None
    logprob: float | None = None


class Method(Protocol):
    """The search for an answer to one prompt. `whole`: what it asks for is to be sampled to the end of the answer,
    not of the step; `width`: how often."""

    whole: bool
    width: int

    def asks(self) -> list[Path]:
        """The beginnings of answers to go on from, `width` times each; none where there is no way on."""
        ...

    def take(self, beginning: Path, drawn: Sequence[Drawn]) -> None:
        """What was sampled from one of them."""
        ...
