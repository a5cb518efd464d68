"""Runs a list of filters over Arrow batches, one batch at a time, and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from time import perf_counter
from typing import Any, NamedTuple

import pyarrow as pa

from posttrain.errors import DataError, InputError
from posttrain.filters.base import Filter, FilterContext, Judge, Mask, Verdict
from posttrain.filters.rows import Rows

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
    """What one filter did. `reasons` adds up to `rows_in - rows_out`; `seconds` are wall-clock seconds.

    `rows_masked` of `rows_out` have other text than before; `masked` counts, by kind, the rows that held it.
    """

    filter: str
    rows_in: int = 0
    rows_out: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    rows_masked: int = 0
    masked: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        masked = {"masked": self.rows_masked, "found": dict(self.masked)} if self.rows_masked else {}
        return {
            "filter": self.filter,
            "in": self.rows_in,
            "out": self.rows_out,
            "rows_per_second": round(self.rows_in / self.seconds) if self.seconds else None,
            "reasons": dict(self.reasons),
            **masked,
        }


class Run:
    """One pass of filters over batches; iterating gives what was kept and dropped, `counts` grows with it.

    Each filter sees what the ones before it kept: `counts[i].rows_out == counts[i + 1].rows_in`.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], filters: Sequence[Filter], context: FilterContext) -> None:
        self.counts = [Count(each.use) for each in filters]
        self.rows_in = self.rows_kept = 0
        if isinstance(batches, Iterator):
            for each in filters:
                if each.scope == "whole":
                    raise InputError(f"{each.use} goes over the rows twice, and these can be read once")
        self._judges = [
            each.start(_reaching(batches, filters[:place], context) if each.scope == "whole" else context)
            for place, each in enumerate(filters)
        ]
        self._batches = whole_prompts(batches) if any(each.scope == "prompt" for each in filters) else batches

    def figures(self) -> dict[str, Any]:
        """What was counted so far, as plain JSON. `dropped` holds `filter: reason` with its rows."""
        dropped: Counter[str] = Counter()
        for count in self.counts:
            dropped.update({f"{count.filter}: {reason}": number for reason, number in count.reasons.items()})
        return {
            "rows": self.rows_in,
            "kept": self.rows_kept,
            "dropped": dict(dropped),
            "filters": [count.figures() for count in self.counts],
        }

    def __iter__(self) -> Iterator[Sifted]:
        for batch in self._batches:
            if batch.num_rows:
                yield self._sift(batch)

    def _sift(self, batch: pa.RecordBatch) -> Sifted:
        schema = dropped_schema(batch.schema)
        rows, gone = Rows(batch), dict[int, tuple[str, Verdict]]()
        for count, judge in zip(self.counts, self._judges, strict=True):
            rows = _apply(judge, rows, count, gone)
        self.rows_in += batch.num_rows
        self.rows_kept += len(rows)
        lost = [gone[index] for index in sorted(gone)]
        columns = [
            *rows.batch.take(pa.array(sorted(gone), pa.int64())).columns,
            pa.array([name for name, _ in lost], pa.string()),
            pa.array([verdict.reason for _, verdict in lost], pa.string()),
            pa.array([verdict.figure for _, verdict in lost], pa.float64()),
        ]
        return Sifted(
            rows.batch.take(pa.array(rows.indices, pa.int64())), pa.RecordBatch.from_arrays(columns, schema=schema)
        )


def _apply(judge: Judge, rows: Rows, count: Count, gone: dict[int, tuple[str, Verdict]]) -> Rows:
    """The rows that `judge` keeps; those that it drops are put into `gone`, by their index in the batch."""
    start = perf_counter()
    masks: dict[int, Mask] = {}
    drops: set[int] = set()
    for position, verdict in judge(rows).items():
        if isinstance(verdict, Mask):
            masks[position] = verdict
            count.masked.update(verdict.found.keys())
            continue
        drops.add(position)
        gone[rows.indices[position]] = (count.filter, verdict)
        count.reasons[verdict.reason] += 1
    count.rows_masked += len(masks)
    changed = rows.replaced({position: mask.columns for position, mask in masks.items()}) if masks else rows
    kept = changed.take(position for position in range(len(rows)) if position not in drops) if drops else changed
    count.rows_in += len(rows)
    count.rows_out += len(kept)
    count.seconds += perf_counter() - start
    return kept


def _reaching(batches: Iterable[pa.RecordBatch], before: Sequence[Filter], context: FilterContext) -> FilterContext:
    """The context of a filter of scope `whole`: with the rows that the filters before it keep."""

    def reaching() -> Iterator[Rows]:
        return (Rows(part.kept) for part in Run(batches, before, context))

    return replace(context, reaching=reaching)


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
