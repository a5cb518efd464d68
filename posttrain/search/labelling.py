"""Labels the steps of answers by what comes of them: where a wrong answer goes wrong, by binary search."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from posttrain.search.bisect import Bisect
from posttrain.search.continuing import Asked, Beginning, Continuing, Setting
from posttrain.search.drawn import Path

# Of one answer: its place; 1 for each step before the first wrong one, 0 for that, null for those after it; how many
# tokens each step has; and the tokens that were sampled to find out.
LABELS = pa.schema(
    [
        ("place", pa.int64()),
        ("labels", pa.list_(pa.int8())),
        ("sizes", pa.list_(pa.int32())),
        ("sampled", pa.int64()),
        ("fallback", pa.string()),
    ]
)


@dataclass(frozen=True)
class Answer:
    """An answer to label: the prompt, with the answer's place among all, its tokens, and whether it is right."""

    asked: Asked
    tokens: Path
    right: bool


@dataclass(frozen=True)
class Shard:
    """Answers that are labelled together. `k`: the answers that are sampled from a beginning."""

    answers: tuple[Answer, ...]
    k: int
    setting: Setting


@dataclass
class _Labelling:
    """One answer. A right one has no wrong step to be found."""

    answer: Answer
    sizes: list[int]
    search: Bisect | None
    tokens: int = 0

    def path(self) -> Path | None:
        """The beginning to look at, None where all is known."""
        steps = None if self.search is None else self.search.probe
        return None if steps is None else self.answer.tokens[: sum(self.sizes[:steps])]

    def labels(self) -> list[int | None]:
        if self.search is None:
            return [1] * len(self.sizes)
        wrong = self.search.first_wrong
        return [1] * wrong + [0] + [None] * (len(self.sizes) - wrong - 1)


def _begun(answer: Answer, sizes: list[int]) -> _Labelling:
    return _Labelling(answer, sizes, None if answer.right or not sizes else Bisect(len(sizes)))


def label(shard: Shard) -> pa.Table:
    """A row of LABELS for each answer, in their order."""
    going_on = Continuing(shard.setting)
    made = [_begun(answer, going_on.steps(answer.tokens)) for answer in shard.answers]
    while asks := [(one, path) for one in made if (path := one.path()) is not None]:
        beginnings = [Beginning(one.answer.asked, path, shard.k) for one, path in asks]
        for (one, _), sampled in zip(asks, going_on.sampled(beginnings), strict=True):
            assert one.search
            one.tokens += sum(some.cost for some in sampled)
            one.search.take(any(some.right for some in sampled))
    rows = [
        {"place": one.answer.asked.place, "labels": one.labels(), "sizes": one.sizes, "sampled": one.tokens}
        | {"fallback": going_on.fallback}
        for one in made
    ]
    return pa.Table.from_pylist(rows, schema=LABELS)
