"""Runs a list of filters over Arrow batches, one batch at a time, and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from time import perf_counter
from typing import NamedTuple, Protocol

import pyarrow as pa

from posttrain.errors import DataError
from posttrain.filters.base import Filter, FilterContext, Verdict
from posttrain.filters.rows import Rows

_VERDICTS = pa.schema([("row", pa.int64()), ("filter", pa.int32()), ("reason", pa.string()), ("figure", pa.float64())])
_ADDED = (("filter", pa.string()), ("reason", pa.string()), ("figure", pa.float64()))


def dropped_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of dropped rows: that of the input, then filter, reason and figure.

    Raises DataError when the input has a column of such a name.
    """
    for name, kind in _ADDED:
        if name in schema.names:
            raise DataError(
                f"the rows have a column {name!r} already, which is where a filter writes what it decided",
                hint="rename the column, or leave it out",
            )
        schema = schema.append(pa.field(name, kind))
    return schema


class Sifted(NamedTuple):
    """What became of some rows, both parts in their order. `dropped` is as `dropped_schema` says."""

    kept: pa.RecordBatch
    dropped: pa.RecordBatch


@dataclass
class Count:
    """What one filter did. `reasons` adds up to `rows_in - rows_out`; `seconds` are wall-clock seconds."""

    filter: str
    rows_in: int = 0
    rows_out: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)


class Memory(Protocol):
    """Where verdicts are kept, so that a pass that was killed need not ask for them again: `shards.Pieces`."""

    def read(self, name: str) -> pa.Table | None: ...
    def keep(self, name: str, table: pa.Table) -> object: ...


class Run:
    """One pass of filters over batches; iterating gives what was kept and dropped, `counts` grows with it.

    Each filter sees what the ones before it kept: `counts[i].rows_out == counts[i + 1].rows_in`. With a `memory`, only
    filters of the scope `corpus` are asked about a batch again: they must know what they have seen.
    """

    def __init__(
        self,
        batches: Iterable[pa.RecordBatch],
        filters: Sequence[Filter],
        context: FilterContext,
        memory: Memory | None = None,
    ) -> None:
        self.counts = [Count(each.use) for each in filters]
        self.rows_in = self.rows_kept = 0
        self._judges = [each.start(context) for each in filters]
        self._corpus = [each.scope == "corpus" for each in filters]
        self._memory = memory
        self._batches = whole_prompts(batches) if any(each.scope == "prompt" for each in filters) else batches

    def __iter__(self) -> Iterator[Sifted]:
        for number, batch in enumerate(batch for batch in self._batches if batch.num_rows):
            yield self._sift(batch, number)

    def _sift(self, batch: pa.RecordBatch, number: int) -> Sifted:
        schema = dropped_schema(batch.schema)
        rows, gone = Rows(batch), dict[int, tuple[str, Verdict]]()
        for count, verdicts in zip(self.counts, self._verdicts(rows, f"verdicts-{number:06d}"), strict=True):
            kept = _without(rows, verdicts)
            count.rows_in += len(rows)
            count.rows_out += len(kept)
            for index, verdict in verdicts.items():
                gone[index] = (count.filter, verdict)
                count.reasons[verdict.reason] += 1
            rows = kept
        self.rows_in += batch.num_rows
        self.rows_kept += len(rows)
        lost = [gone[index] for index in sorted(gone)]
        columns = [
            *batch.take(pa.array(sorted(gone), pa.int64())).columns,
            pa.array([name for name, _ in lost], pa.string()),
            pa.array([verdict.reason for _, verdict in lost], pa.string()),
            pa.array([verdict.figure for _, verdict in lost], pa.float64()),
        ]
        return Sifted(
            batch.take(pa.array(rows.indices, pa.int64())), pa.RecordBatch.from_arrays(columns, schema=schema)
        )

    def _verdicts(self, rows: Rows, name: str) -> list[dict[int, Verdict]]:
        """For each filter, the rows that it drops, by their index in the batch: as remembered, or asked for."""
        known = self._memory.read(name) if self._memory else None
        remembered = None if known is None else _by_filter(known, len(self._judges))
        found: list[dict[int, Verdict]] = []
        for at, (judge, count) in enumerate(zip(self._judges, self.counts, strict=True)):
            said: dict[int, Verdict] = {}
            if remembered is None or self._corpus[at]:
                start = perf_counter()
                said = {rows.indices[position]: verdict for position, verdict in judge(rows).items()}
                count.seconds += perf_counter() - start
            verdicts = said if remembered is None else remembered[at]
            found.append(verdicts)
            rows = _without(rows, verdicts)
        if self._memory and known is None:
            self._memory.keep(name, _table(found))
        return found


def _without(rows: Rows, verdicts: Mapping[int, Verdict]) -> Rows:
    """The rows on which there is no verdict."""
    if not verdicts:
        return rows
    return rows.take(position for position, index in enumerate(rows.indices) if index not in verdicts)


def _table(verdicts: Sequence[Mapping[int, Verdict]]) -> pa.Table:
    flat = [(index, at, *verdict) for at, found in enumerate(verdicts) for index, verdict in found.items()]
    return pa.Table.from_pylist([dict(zip(_VERDICTS.names, row, strict=True)) for row in flat], _VERDICTS)


def _by_filter(known: pa.Table, filters: int) -> list[dict[int, Verdict]]:
    found: list[dict[int, Verdict]] = [{} for _ in range(filters)]
    for row in known.to_pylist():
        found[row["filter"]][row["row"]] = Verdict(row["reason"], row["figure"])
    return found


def whole_prompts(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches that end where a prompt ends.

    Raises DataError when the rows of a prompt do not stand together. Holds a 64-bit hash a prompt to see that.
    """
    seen: set[int] = set()
    held: list[pa.RecordBatch] = []  # the last prompt so far, which may go on
    held_key: str | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        groups = [(key, sum(1 for _ in rows)) for key, rows in groupby(Rows(batch).prompt_keys)]
        begun = groups[1:] if held and groups[0][0] == held_key else groups
        for key, _ in begun:
            if hash(key) in seen:
                raise DataError(
                    f"the rows of one prompt do not stand together (prompt {key!r:.80})",
                    hint="sort the rows by prompt first",
                )
            seen.add(hash(key))
        if not begun:
            held.append(batch)
            continue
        held_key, last_rows = groups[-1]
        cut = batch.num_rows - last_rows
        if held or cut:
            yield pa.concat_batches([*held, batch.slice(0, cut)])
        held = [batch.slice(cut)]
    if held:
        yield pa.concat_batches(held)
