"""Searches for answers to several prompts at once: what their methods ask for is sampled together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from posttrain.config import Search
from posttrain.search.beam import Beam
from posttrain.search.continuing import Asked, Beginning, Continuing, Sampled, Setting
from posttrain.search.drawn import Drawn, Method, Path
from posttrain.search.step_scorer import StepScorer
from posttrain.search.tree import Tree

# Of one prompt: its place; the tokens that were sampled, the answers that came to their end, and those of them that had
# no value; the right answer, and the wrong one that goes with it longest; and why sampling was slow, if it was.
FOUND = pa.schema(
    [
        ("place", pa.int64()),
        ("sampled", pa.int64()),
        ("answers", pa.int64()),
        ("unchecked", pa.int64()),
        ("found", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("wrong", pa.list_(pa.int32())),
        ("wrong_text", pa.string()),
        ("fallback", pa.string()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """Prompts that are searched for together. `scorer`: of steps, None where nothing scores them."""

    asked: tuple[Asked, ...]
    section: Search
    setting: Setting
    scorer: StepScorer | None


@dataclass
class _Prompt:
    """A search under way. `drawn`: how often a beginning was gone on from; `wrong`: answers that the checker calls
    so."""

    asked: Asked
    method: Method
    drawn: Counter[Path] = field(default_factory=Counter)
    tokens: int = 0
    answers: int = 0
    unchecked: int = 0
    found: Path | None = None
    wrong: list[Path] = field(default_factory=list)

    def note(self, path: Path, sampled: Sequence[Sampled]) -> None:
        """What was sampled behind a beginning."""
        self.drawn[path] += len(sampled)
        for made in sampled:
            self.tokens += made.cost
            if not made.ended:
                continue
            self.answers += 1
            answer = (*path, *made.tokens)
            if made.right:
                self.found = self.found or answer
            elif made.value is None:
                self.unchecked += 1
            else:
                self.wrong.append(answer)


def search(shard: Shard) -> pa.Table:
    """A row of FOUND for each prompt, in their order."""
    return _Searching(shard).all()


class _Searching:
    def __init__(self, shard: Shard) -> None:
        self.section, self.scorer = shard.section, shard.scorer
        self.going_on = Continuing(shard.setting)
        self.prompts = [_Prompt(asked, self._method()) for asked in shard.asked]

    def _method(self) -> Method:
        section = self.section
        if section.method == "beam":
            return Beam(section.width, section.max_new_tokens)
        return Tree(section.width, section.exploration, section.max_new_tokens)

    def all(self) -> pa.Table:
        while under_way := [one for one in self.prompts if one.found is None and one.tokens < self.section.budget]:
            self._advance(under_way)
        return pa.Table.from_pylist([self._row(one) for one in self.prompts], schema=FOUND)

    def _advance(self, prompts: Sequence[_Prompt]) -> None:
        """One simulation, or one step of each beginning, for every prompt."""
        asks = [(one, path) for one in prompts for path in one.method.asks()]
        beginnings = [Beginning(one.asked, path, one.method.width, one.drawn[path]) for one, path in asks]
        sampled = self.going_on.sampled(beginnings, by_step=not asks[0][0].method.whole)
        scores = self._scores(beginnings, sampled)
        for (one, path), some, of_steps in zip(asks, sampled, scores, strict=True):
            one.note(path, some)
            one.method.take(path, [_drawn(made, score) for made, score in zip(some, of_steps, strict=True)])

    def _scores(
        self, beginnings: Sequence[Beginning], sampled: Sequence[Sequence[Sampled]]
    ) -> list[list[float | None]]:
        """The score of the first step of each, one that has a token; those of the same tokens are scored once."""
        if self.scorer is None:
            return [[None] * len(some) for some in sampled]
        steps = [list(dict.fromkeys(made.tokens[: made.step] for made in some if made.step)) for some in sampled]
        scored = self.scorer([(*one.asked.ids, *one.path) for one in beginnings], steps)
        by_step = [dict(zip(some, scores, strict=True)) for some, scores in zip(steps, scored, strict=True)]
        return [
            [known.get(made.tokens[: made.step]) for made in some] for known, some in zip(by_step, sampled, strict=True)
        ]

    def _row(self, one: _Prompt) -> dict[str, Any]:
        found, decode = one.found, self.going_on.decode
        wrong = None if found is None else max(one.wrong, key=lambda path: _shared(found, path), default=None)
        return {
            "place": one.asked.place,
            "sampled": one.tokens,
            "answers": one.answers,
            "unchecked": one.unchecked,
            "found": found,
            "text": None if found is None else decode(found),
            "wrong": wrong,
            "wrong_text": None if wrong is None else decode(wrong),
            "fallback": self.going_on.fallback,
        }


def _drawn(made: Sampled, score: float | None) -> Drawn:
    logprob = None if made.logprobs is None else sum(made.logprobs[: made.step])
    return Drawn(made.tokens[: made.step], made.tokens[made.step :], made.ended, made.value, score, logprob)


def _shared(one: Path, other: Path) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
