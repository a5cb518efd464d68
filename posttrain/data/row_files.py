"""Reads JSONL, Parquet and CSV files of rows as Arrow batches of bounded size, whatever is in them.

What is no row (bytes that are no UTF-8, a line that is no JSON object) does not stop the reading: it is handed on with
its place and a reason, to be counted. What concerns a whole column (text in one row, a number in the next) is an error,
raised by `open_rows`, before anything is done.
"""

from __future__ import annotations

import csv
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa

from posttrain.data import parquet_batches
from posttrain.data.text_lines import MOST_ROW, Lines, csv_rows, no_constant, open_lines, unreadable
from posttrain.errors import DataError, in_file

BATCH_ROWS, BATCH_BYTES = 8192, 1 << 24
MOST_COLUMNS = 1000  # of all rows together, the keys of objects counted
TOO_LONG = f"longer than {MOST_ROW // 1_000_000} MB"
_FAULTS = (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD]")
ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".csv", ".csv.gz", ".parquet")


class Unread(NamedTuple):
    """What could not be read as a row. `number` is its line (JSONL, CSV) or its row (Parquet), from 1."""

    number: int
    reason: str


class Part(NamedTuple):
    rows: pa.RecordBatch
    unread: Sequence[Unread]


def open_rows(path: Path) -> RowFile:
    """The rows of a file. JSONL and CSV are read once here, to know their columns.

    Raises:
        DataError: there is no such file, it holds no row, or its rows make no table.
    """
    if not path.exists():
        raise DataError("no such file", file=str(path), rule="data-no-such-file")
    with in_file(path):
        try:
            if path.suffix == ".parquet":
                return ParquetRows(path)
            if path.name.endswith(ENDINGS):
                return LineRows(path)
        except _FAULTS as error:
            raise unreadable(path, error) from None
        hint = "write JSONL, Parquet or CSV"
        raise DataError(f"cannot read {path.suffix or 'this'} files", hint=hint, rule="data-file-kind")


class ParquetRows:
    """Rows of a Parquet file; those whose text is no UTF-8 are unread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = parquet_batches.metadata(path)
        self.schema = self._known.schema
        if not self._known.rows:
            raise DataError("the file holds no rows", rule="data-no-rows")

    def parts(self) -> Iterator[Part]:
        first = 1
        begun: list[pa.RecordBatch] = []
        unread: list[Unread] = []
        read = size = 0
        try:
            for batch in parquet_batches.batches(self.path, self._known):
                rows, bad = _good(batch, first)
                begun.append(rows)
                unread += bad
                first, read, size = first + batch.num_rows, read + batch.num_rows, size + batch.nbytes
                if read >= BATCH_ROWS or size >= BATCH_BYTES:
                    yield Part(pa.concat_batches(begun), unread)
                    begun, unread, read, size = [], [], 0, 0
            if begun:
                yield Part(pa.concat_batches(begun), unread)
        except _FAULTS as error:
            raise unreadable(self.path, error) from None


def _good(batch: pa.RecordBatch, first: int) -> tuple[pa.RecordBatch, list[Unread]]:
    """The rows that can be read, and the others with their numbers."""
    large = batch.nbytes > MOST_ROW
    if _valid(batch) and not large:
        return batch, []
    bad = {}
    for at in range(batch.num_rows):
        row = batch.slice(at, 1)
        if not _valid(row):
            bad[at] = Unread(first + at, "not UTF-8")
        elif large and row.nbytes > MOST_ROW:
            bad[at] = Unread(first + at, TOO_LONG)
    good = [at for at in range(batch.num_rows) if at not in bad]
    return batch.take(pa.array(good, pa.int64())) if bad else batch, list(bad.values())


class LineRows:
    """Rows of a JSONL or CSV file, plain or gz. CSV values are text, empty ones null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = _csv if path.name.removesuffix(".gz").endswith(".csv") else _jsonl
        schema: pa.Schema | None = None
        unread: list[Unread] = []
        for rows, bad in self._chunks():
            unread = unread or bad
            if rows:
                schema = self._with(schema, rows)
        if schema is None:
            why = f"; line {unread[0].number}: {unread[0].reason}" if unread else ""
            raise DataError(f"the file holds no rows{why}", rule="data-no-rows")
        for field in schema:
            if _without_children(field.type):
                hint = "take the column out, or put something in"
                message = f"the column {field.name!r} holds empty objects only"
                raise DataError(message, hint=hint, rule="data-empty-objects")
        self.schema = schema

    def parts(self) -> Iterator[Part]:
        try:
            for rows, bad in self._chunks():
                yield Part(pa.RecordBatch.from_pylist([row for _, row in rows], self.schema), bad)
        except _FAULTS as error:
            raise unreadable(self.path, error) from None

    def _chunks(self) -> Iterator[tuple[list[tuple[int, dict[str, Any]]], list[Unread]]]:
        """Rows with their lines, and what is unread, some MB at a time."""
        rows, unread, size = [], [], 0
        with open_lines(self.path) as lines:
            for number, length, row in self._read(lines, self.path):
                size += length
                if isinstance(row, str):
                    unread.append(Unread(number, row))
                else:
                    rows.append((number, row))
                if len(rows) + len(unread) >= BATCH_ROWS or size >= BATCH_BYTES:
                    yield rows, unread
                    rows, unread, size = [], [], 0
        if rows or unread:
            yield rows, unread

    def _with(self, schema: pa.Schema | None, rows: list[tuple[int, dict[str, Any]]]) -> pa.Schema:
        made = schema
        try:
            made = _merged(schema, [row for _, row in rows])
        except (pa.ArrowException, OverflowError):
            for number, row in rows:  # which one?
                try:
                    made = _merged(made, [row])
                except (pa.ArrowException, OverflowError) as error:
                    said = str(error).splitlines()[0].removeprefix("Unable to merge: ")
                    hint = "give each column one type in all rows"
                    message = f"does not fit the rows before: {said}"
                    raise DataError(message, line=number, hint=hint, rule="data-column-type") from None
        assert made is not None
        if sum(_width(field.type) for field in made) > MOST_COLUMNS:
            _too_wide()
        return made


RowFile = ParquetRows | LineRows
"""A file of rows: its `path`; `schema`, that of all rows; `parts()`, which streams the rows, and what could not be read
as one, in the file's order."""


def _jsonl(lines: Lines, path: Path) -> Iterator[tuple[int, int, dict[str, Any] | str]]:
    """Of each line its number, its length and the row, or why there is none."""
    for number, raw in enumerate(lines, 1):
        if len(raw) > MOST_ROW:
            yield number, 0, TOO_LONG
        else:
            yield number, len(raw), _row(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)


def _row(raw: bytes) -> dict[str, Any] | str:
    if not raw.strip():
        return "empty line"
    try:
        row = json.loads(raw.decode(), parse_constant=no_constant)
        if _ESCAPED_SURROGATE.search(raw):
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no character
    except UnicodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "invalid JSON"
    return row if isinstance(row, dict) and row else "not a JSON object with columns"


def _csv(lines: Lines, path: Path) -> Iterator[tuple[int, int, dict[str, Any] | str]]:
    rows = csv_rows(lines, path, strict=False)
    _, _, header = next(rows, (1, 0, []))
    if len(set(header)) != len(header):
        raise csv.Error("two columns have one name")
    if any(map(_SURROGATE.search, header)):
        raise DataError("the names of the columns are not UTF-8", file=str(path), line=1, rule="data-not-utf8")
    for number, length, values in rows:
        if not values:
            yield number, length, "empty line"
        elif len(values) != len(header):
            yield number, length, "another number of values than columns"
        elif any(map(_SURROGATE.search, values)):
            yield number, length, "not UTF-8"
        else:
            yield number, length, {name: value or None for name, value in zip(header, values, strict=True)}


def _merged(schema: pa.Schema | None, rows: list[dict[str, Any]]) -> pa.Schema:
    """The columns of the schema and of all rows (Arrow by itself looks at the first row only)."""
    fields, width = [], 0
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = [row.get(name) for row in rows]
        kind = pa.infer_type(values)
        width += _width(kind)
        if width > MOST_COLUMNS:
            _too_wide()
        fields.append((name, pa.array(values, kind).type))
    new = pa.schema(fields)
    return new if schema is None else pa.unify_schemas([schema, new], promote_options="permissive")


def _width(kind: pa.DataType) -> int:
    """How many columns of plain values a type takes."""
    if pa.types.is_struct(kind):
        return sum(_width(kind.field(i).type) for i in range(kind.num_fields))
    return _width(kind.value_type) if pa.types.is_list(kind) else 1


def _too_wide() -> NoReturn:
    message = f"more than {MOST_COLUMNS:,} columns, counting the keys of objects"
    hint = "write what differs from row to row as text (JSON), or take it out"
    raise DataError(message, hint=hint, rule="data-columns")


def _valid(batch: pa.RecordBatch) -> bool:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _without_children(kind: Any) -> bool:
    """Whether somewhere in the type there is an object without keys, which Parquet cannot hold."""
    if pa.types.is_struct(kind):
        return not kind.num_fields or any(_without_children(kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_list(kind) and _without_children(kind.value_type)
