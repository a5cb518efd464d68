"""Reads a Parquet file a few rows at a time, whatever it inflates to.

A few hundred bytes of Parquet can stand for gigabytes: compressed pages, one value named a million times, runs of equal
values in lists. What its metadata says of that is looked at before anything is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.text_lines import MOST_RATIO, MOST_ROW, inflated
from posttrain.errors import DataError
from posttrain.storage import bounded
from posttrain.storage.regular_files import open_regular

_MOST_CHUNK = 200_000_000  # bytes of a column's chunk, where it is compressed more than MOST_RATIO times
_ROWS, _BYTES = 16, 256_000_000  # of one batch
_REWRITE = "take the column out, or write the file anew with smaller row groups"


@dataclass(frozen=True)
class Metadata:
    """`schema`: the columns. `groups`: of each row group, how many of its rows can be read at a time."""

    schema: pa.Schema
    rows: int
    groups: Sequence[int]


def metadata(path: Path) -> Metadata:
    """The metadata of a file, read in a child process: Arrow aborts the process on contradictory metadata.

    Raises:
        DataError: it inflates too much, has names of columns that are no UTF-8, or ended the child.
        NotRegularError, OSError, pa.ArrowException: it cannot be read.
    """

    def read(say: bounded.Say) -> Metadata:
        say("its metadata")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where the child's last words would go
        with open_regular(path) as stream, pq.ParquetFile(stream) as file:
            known, schema = file.metadata, _mapped(file.schema_arrow, _without_views)
            groups = [_rows_at_once(known.row_group(at), file.schema, str(path)) for at in range(known.num_row_groups)]
            return Metadata(schema, known.num_rows, groups)

    try:
        return bounded.run(read, seconds=15, memory=1 << 30)
    except bounded.OutOfBoundsError as error:
        message = f"not a Parquet file that can be read: its metadata end what reads them ({error.how})"
        raise DataError(message, file=str(path), hint="write the file anew", rule="data-corrupt") from None
    except UnicodeDecodeError:
        message = "the name of a column is not UTF-8 text"
        raise DataError(message, file=str(path), hint="write the file anew", rule="data-not-utf8") from None


def batches(path: Path, known: Metadata) -> Iterator[pa.RecordBatch]:
    """The rows in their order, at most 16 at a time.

    Raises:
        DataError: it inflates to more than it says.
        NotRegularError, OSError, pa.ArrowException: it cannot be read.
    """
    with open_regular(path) as stream, pq.ParquetFile(stream, buffer_size=1 << 20) as file:
        size, read = path.stat().st_size, 0
        for index, rows in enumerate(known.groups):
            for batch in file.iter_batches(rows, row_groups=[index]):
                read += batch.nbytes
                if inflated(read, size):
                    message = f"inflates to more than {MOST_RATIO} times its size"
                    raise DataError(message, file=str(path), hint=_REWRITE, rule="data-bomb")
                yield batch if batch.schema.equals(known.schema) else batch.cast(known.schema)


def _rows_at_once(group: pq.RowGroupMetaData, schema: pq.ParquetSchema, name: str) -> int:
    """How many rows of a group can be read at a time. Raises DataError where even one may be too large."""
    largest = 1
    for index in range(group.num_columns):
        chunk = group.column(index)
        nested = schema.column(index).max_repetition_level > 0
        size = max(chunk.total_uncompressed_size, 8 * chunk.num_values if nested else 0)
        if size > MOST_ROW * max(group.num_rows, 1):
            message = f"the column {chunk.path_in_schema!r} has rows of more than {MOST_ROW // 1_000_000} MB"
            raise DataError(message, file=name, hint=_REWRITE, rule="data-row-size")
        if size > MOST_RATIO * max(chunk.total_compressed_size, 1):
            if size > _MOST_CHUNK:
                small = f"{chunk.total_compressed_size:,}"
                message = f"the column {chunk.path_in_schema!r} inflates from {small} to {size:,} bytes"
                raise DataError(message, file=name, hint=_REWRITE, rule="data-bomb")
            largest = max(largest, size)  # one value of it, named in each row
    return max(1, min(_ROWS, _BYTES // largest))


def values(batch: pa.RecordBatch, error: Callable[..., DataError], first: int) -> list[dict[str, Any]]:
    """The rows of a batch as Python has them, times to the microsecond and in UTC. `first`: the number of the first.

    Raises:
        DataError: by `error`, a row that is too large, or whose values are none.
    """
    if batch.nbytes > MOST_ROW:
        for at in range(batch.num_rows):
            if batch.slice(at, 1).nbytes > MOST_ROW:
                raise error(first + at, f"has more than {MOST_ROW // 1_000_000} MB", rule="data-row-size")
    try:
        return _plain(batch).to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as whole:
        for at in range(batch.num_rows):  # which one?
            try:
                _plain(batch.slice(at, 1)).to_pylist()
            except UnicodeDecodeError:
                raise error(first + at, "not UTF-8 text", "write the text as UTF-8", rule="data-not-utf8") from None
            except (ValueError, OverflowError, pa.ArrowException) as one:
                said = str(one).splitlines()[0]
                raise error(first + at, f"a value cannot be read: {said}", rule="data-value") from None
        raise error(first, f"a value cannot be read: {whole}", rule="data-value") from None


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    schema = _mapped(batch.schema, _to_microseconds)
    return batch if schema == batch.schema else batch.cast(schema, safe=False)


def _to_microseconds(kind: pa.DataType) -> pa.DataType:
    """Python's own times have no more; and a zone's name may be unknown where it is read."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us" if kind.unit == "ns" else kind.unit, kind.tz and "UTC")
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    return pa.time64("us") if pa.types.is_time64(kind) else kind


def _without_views(kind: pa.DataType) -> pa.DataType:
    """Most of Arrow's functions have no kernels for views."""
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _mapped(schema: pa.Schema, of: Callable[[pa.DataType], pa.DataType]) -> pa.Schema:
    def mapped(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_struct(kind):
            return pa.struct([each.with_type(mapped(each.type)) for each in kind])
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            made = pa.list_ if pa.types.is_list(kind) else pa.large_list
            return made(kind.value_field.with_type(mapped(kind.value_type)))
        return of(kind)

    return pa.schema([field.with_type(mapped(field.type)) for field in schema], schema.metadata)
