"""Beam search over the steps of an answer. Pure.

Of several beginnings one step each is sampled, several times; the best beginnings so far go on, by the sum of their
log-probability and their steps' scores, of which one alone counts where the other is not known. Where all have come to
an end it begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.search.drawn import Drawn, Path


@dataclass(frozen=True)
class Prefix:
    path: Path = ()
    score: float | None = 0.0
    logprob: float | None = 0.0

    def followed_by(self, one: Drawn) -> Prefix:
        return Prefix((*self.path, *one.step), _plus(self.score, one.score), _plus(self.logprob, one.logprob))


class Beam:
    """The search for an answer to one prompt. `room`: the most tokens of an answer."""

    whole = False

    def __init__(self, width: int, room: int) -> None:
        self.width, self.room = width, room
        self.live: dict[Path, Prefix] = {(): Prefix()}
        self._next: dict[Path, Prefix] = {}
        self._waiting = 0

    def asks(self) -> list[Path]:
        self._next, self._waiting = {}, len(self.live)
        return list(self.live)

    def take(self, beginning: Path, drawn: Sequence[Drawn]) -> None:
        for one in drawn:
            made = self.live[beginning].followed_by(one)
            if not one.ended and len(made.path) < self.room:
                self._next.setdefault(made.path, made)
        self._waiting -= 1
        if not self._waiting:
            self.live = {one.path: one for one in self.best(list(self._next.values()))} or {(): Prefix()}

    def best(self, beginnings: Sequence[Prefix]) -> list[Prefix]:
        """Those that go on, the best first; of equal ones the first."""
        return sorted(beginnings, key=lambda one: -(one.score or 0.0) - (one.logprob or 0.0))[: self.width]


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
