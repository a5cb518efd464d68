"""Runs filters over one file. The folder with kept and dropped rows appears complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import filters
from posttrain.data.row_files import Part, RowFile, open_rows
from posttrain.errors import DataError, InputError, in_file
from posttrain.filters.chain import Count, selected
from posttrain.filters.rows import ANSWERS, Rows
from posttrain.rewards.judge_cache import judge_metrics
from posttrain.storage.files import fsync

# Where the text of an evaluation set stands: the first of these columns that there is.
QUESTIONS = ("prompt", "question", "instruction", "problem", "messages")
READ = "read"  # what stands as the filter of what is no row


def filter_file(
    source: Path, chosen: Sequence[filters.Filter], context: filters.FilterContext, out: Path
) -> dict[str, Any]:
    """Writes `out`/kept.parquet and `out`/dropped.parquet; returns the counts, as `filters.Run.figures`.

    Unreadable rows are counted under the filter `read` and are in the dropped rows with only their place (line or row,
    from 1) as the figure. Judgements are cached in a hidden folder beside `out` until the end: the same call resumes
    from there. Metrics of judges are under `judges`, see `judge_metrics`.

    Raises:
        InputError: `out` is taken or cannot be made, or the file lacks what a filter needs. Nothing is written then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} exists already", hint="name another folder by --out, or remove it", rule="filter-output"
        )
    file = open_rows(source)
    with in_file(source):
        parts = _checked(file, chosen)
    reading = Count(READ)
    unread: list[pa.RecordBatch] = []
    schema = filters.dropped_schema(file.schema)
    scratch = out.parent / f".{out.name}.judged"

    def again(columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        return selected((part.rows for part in file.parts()), columns)

    context = replace(context, scratch=scratch, corpus=again)
    passage = filters.run(_read(parts, reading, unread, schema), chosen, context)
    with (
        _whole(out) as work,
        pq.ParquetWriter(work / "kept.parquet", file.schema, compression="zstd") as kept,
        pq.ParquetWriter(work / "dropped.parquet", schema, compression="zstd") as dropped,
    ):
        for part in passage:
            kept.write_batch(part.kept)
            dropped.write_batch(part.dropped)
            _flush(unread, dropped)
        _flush(unread, dropped)
        kept.close()  # before the folder is made durable
        dropped.close()
    judges = judge_metrics(scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    return {**passage.figures(before=reading), **judges}


def evaluation_prompts(path: Path) -> list[str]:
    """The prompts of an evaluation set as `filters.message_text` gives them: its column of QUESTIONS.

    Raises:
        DataError: it is missing, empty, has no such column, or a line of it cannot be read.
    """
    with in_file(path):
        file, prompts = open_rows(path), list[str]()
        column = next((name for name in QUESTIONS if name in file.schema.names), None)
        if column is None:
            message = f"an evaluation set needs one of the columns {', '.join(QUESTIONS)}"
            hint = f"there are: {', '.join(file.schema.names)}; call it 'prompt'"
            raise DataError(message, hint=hint, rule="filter-evaluation-set")
        name = "messages" if column == "messages" else "prompt"
        for part in file.parts():
            for number, reason in part.unread:
                hint = "what is evaluated on must be known whole"
                raise DataError(reason, line=number, hint=hint, rule="filter-evaluation-set")
            prompts += Rows(pa.RecordBatch.from_arrays([part.rows.column(column)], [name])).prompts
        prompts = [prompt for prompt in prompts if prompt.strip()]
        if not prompts:
            message = f"the column {column!r} of this evaluation set holds no text"
            raise DataError(message, rule="filter-evaluation-set")
        return prompts


def _checked(file: RowFile, chosen: Sequence[filters.Filter]) -> Iterator[Part]:
    """The file's parts, after a check that there are answers, and that the first rows have what each filter needs."""
    if not any(name in file.schema.names for name in ANSWERS):
        wanted = ", ".join(map(repr, ANSWERS))
        hint = f"there are: {', '.join(file.schema.names)}; rename one, or add it"
        raise DataError(f"no column {wanted}, so no answer to judge", hint=hint, rule="filter-no-answer")
    parts = file.parts()
    begun: list[Part] = []
    for part in parts:
        begun.append(part)
        if part.rows.num_rows:
            break
    rows = Rows(begun[-1].rows)
    lacking = {one.use: lack for one in chosen if (lack := one.lacks(rows))}
    if lacking:
        name, lack = next(iter(lacking.items()))
        rest = [
            one.model_dump(mode="json", exclude_defaults=True) | {"use": one.use}
            for one in chosen
            if one.use not in lacking
        ]
        hint = f"without {' and '.join(lacking)}: --set 'filters={json.dumps(rest)}'"
        raise DataError(f"the filter {name!r} needs {lack}", hint=hint, rule="filter-lacks")
    _ = rows.prompts, rows.answers  # of a kind that can be read?
    return chain(begun, parts)


def _read(
    parts: Iterator[Part], reading: Count, unread: list[pa.RecordBatch], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The rows of the parts. What is unread is counted and put into `unread`, as rows of dropped.parquet."""
    start = perf_counter()
    for rows, bad in parts:
        reading.rows_in += rows.num_rows + len(bad)
        reading.rows_out += rows.num_rows
        reading.reasons.update(reason for _, reason in bad)
        if bad:
            lost = [{"filter": READ, "reason": reason, "figure": number} for number, reason in bad]
            unread.append(pa.RecordBatch.from_pylist(lost, schema))
        reading.seconds += perf_counter() - start
        yield rows
        start = perf_counter()


def _flush(unread: list[pa.RecordBatch], dropped: pq.ParquetWriter) -> None:
    for batch in unread:
        dropped.write_batch(batch)
    unread.clear()


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `out` at the end and removed after an error."""
    work = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
    except OSError as error:
        raise InputError(
            f"cannot be made: {error.strerror}",
            file=str(out),
            hint="name another folder by --out",
            rule="filter-output",
        ) from None
    try:
        yield work
        for path in work.iterdir():
            fsync(path)
        fsync(work)
        work.rename(out)  # onto an empty folder too
        fsync(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
