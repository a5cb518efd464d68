"""Runs a list of filters over Arrow batches, one batch at a time, and counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from posttrain.errors import DataError
from posttrain.filters.base import Decide, Filter, FilterContext, Mask, Verdict, read_once
from posttrain.filters.rows import Rows
from posttrain.storage.pieces import Pieces

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
                rule="filter-column-taken",
            )
        schema = schema.append(pa.field(name, kind))
    return schema


class FilterResult(NamedTuple):
    """A batch of rows split into kept and dropped, each in its order. The schema of `dropped` is `dropped_schema`."""

    kept: pa.RecordBatch
    dropped: pa.RecordBatch


@dataclass
class Count:
    """What one filter did. `reasons` adds up to `rows_in - rows_out`; `seconds` are wall-clock seconds.

    What a filter does before its first verdict (load a model, go over the corpus) is in them. `rows_masked` of
    `rows_out` have other text than before; `masked` counts, by kind, the rows that held it.
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


Verdicts = Mapping[int, Verdict | Mask]  # by the row's index in the batch


class Run:
    """One pass of filters over batches; iterating yields kept and dropped rows and updates `counts`.

    Each filter gets the rows that the ones before it kept: `counts[i].rows_out == counts[i + 1].rows_in`. With a
    `memory` (its pieces: the verdicts on each batch), only filters of scope `corpus` and `whole` process a finished
    batch again, to rebuild their state.
    """

    def __init__(
        self,
        batches: Iterable[pa.RecordBatch],
        filters: Sequence[Filter],
        context: FilterContext,
        memory: Pieces | None = None,
    ) -> None:
        self.counts = [Count(each.use) for each in filters]
        self.rows_in = self.rows_kept = 0
        if context.corpus is read_once and not isinstance(batches, Iterator):
            context = replace(context, corpus=partial(selected, batches))
        self._deciders: list[Decide] = []
        for place, (each, count) in enumerate(zip(filters, self.counts, strict=True)):
            start = perf_counter()
            self._deciders.append(each.start(replace(context, reaching=partial(_reaching, filters[:place], context))))
            count.seconds += perf_counter() - start
        self._corpus = [each.scope in ("corpus", "whole") for each in filters]
        self._memory = memory
        self._batches = whole_prompts(batches) if any(each.scope == "prompt" for each in filters) else batches

    def figures(self, before: Count | None = None) -> dict[str, Any]:
        """The counts so far, as plain JSON. `dropped`: rows by `filter: reason`. `before`: of what was dropped before
        the first filter, as by reading."""
        counts = [*([before] if before else []), *self.counts]
        dropped: Counter[str] = Counter()
        for count in counts:
            dropped.update({f"{count.filter}: {reason}": number for reason, number in count.reasons.items()})
        return {
            "rows": before.rows_in if before else self.rows_in,
            "kept": self.rows_kept,
            "dropped": dict(dropped),
            "filters": [count.figures() for count in counts],
        }

    def __iter__(self) -> Iterator[FilterResult]:
        for number, batch in enumerate(batch for batch in self._batches if batch.num_rows):
            yield self._filter_batch(batch, number)

    def _filter_batch(self, batch: pa.RecordBatch, number: int) -> FilterResult:
        schema = dropped_schema(batch.schema)
        rows, gone = Rows(batch), dict[int, tuple[str, Verdict]]()
        name = f"decided-{number:06d}"
        known = self._memory.read(name) if self._memory else None
        remembered = None if known is None else _by_filter(known, len(self._deciders))
        found: list[Verdicts] = []
        for at, (decide, count) in enumerate(zip(self._deciders, self.counts, strict=True)):
            said: Verdicts = {}
            if remembered is None or self._corpus[at]:
                start = perf_counter()
                said = {rows.indices[position]: verdict for position, verdict in decide(rows).items()}
                count.seconds += perf_counter() - start
            found.append(said if remembered is None else remembered[at])
            rows = _apply(found[-1], rows, count, gone)
        if self._memory and known is None:
            self._memory.keep(name, _table(found))
        self.rows_in += batch.num_rows
        self.rows_kept += len(rows)
        lost = [gone[index] for index in sorted(gone)]
        columns = [
            *rows.batch.take(pa.array(sorted(gone), pa.int64())).columns,
            pa.array([name for name, _ in lost], pa.string()),
            pa.array([verdict.reason for _, verdict in lost], pa.string()),
            pa.array([verdict.figure for _, verdict in lost], pa.float64()),
        ]
        return FilterResult(
            rows.batch.take(pa.array(rows.indices, pa.int64())), pa.RecordBatch.from_arrays(columns, schema=schema)
        )


def _apply(verdicts: Verdicts, rows: Rows, count: Count, gone: dict[int, tuple[str, Verdict]]) -> Rows:
    """The kept rows, masked ones with their new text; dropped ones are added to `gone`, by index."""
    masks: dict[int, Mapping[str, Any]] = {}
    left: list[int] = []
    for position, index in enumerate(rows.indices):
        verdict = verdicts.get(index)
        if isinstance(verdict, Verdict):
            gone[index] = (count.filter, verdict)
            count.reasons[verdict.reason] += 1
            continue
        left.append(position)
        if verdict is not None:
            masks[position] = verdict.columns
            count.masked.update(verdict.found.keys())
    count.rows_masked += len(masks)
    changed = rows.replaced(masks) if masks else rows
    kept = changed.take(left) if len(left) < len(rows) else changed
    count.rows_in += len(rows)
    count.rows_out += len(kept)
    return kept


def _table(verdicts: Sequence[Verdicts]) -> pa.Table:
    """Verdicts as JSON: of each the filter's place, the row, then what it holds."""
    said = [[at, index, *verdict] for at, found in enumerate(verdicts) for index, verdict in found.items()]
    return pa.table({"verdicts": [json.dumps(said, default=_plain)]})


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):  # a filter's figure
        return value.item()
    raise TypeError(f"a verdict holds a {type(value).__name__}")


def _by_filter(known: pa.Table, filters: int) -> list[Verdicts]:
    found: list[dict[int, Verdict | Mask]] = [{} for _ in range(filters)]
    for at, index, *said in json.loads(known["verdicts"][0].as_py()):
        found[at][index] = Verdict(*said) if isinstance(said[0], str) else Mask(*said)
    return list(found)


def selected(batches: Iterable[pa.RecordBatch], columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """The batches with those of the columns that they have; None: all."""
    for batch in batches:
        yield batch if columns is None else batch.select([name for name in columns if name in batch.schema.names])


def _reaching(before: Sequence[Filter], context: FilterContext) -> Iterator[Rows]:
    """The rows of the corpus that these filters keep."""
    return (Rows(part.kept) for part in Run(context.corpus(None), before, context))


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
                    f"the rows of one prompt are not adjacent (prompt {key!r:.80})",
                    hint="sort the rows by prompt first",
                    rule="filter-not-grouped",
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
