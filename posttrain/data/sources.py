"""Sources of rows: JSONL, Parquet and CSV files, and data sets of the Hub.

A message names the file, the line and what to do.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain import shipped
from posttrain.config import PromptSet
from posttrain.data.formats import has_prompt, kind
from posttrain.data.text_lines import MOST_ROW, csv_rows, no_constant, open_lines, too_long, unreadable
from posttrain.errors import DataError, did_you_mean

# Reward functions get these as arguments of their own.
RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")

# What a prompt is often called, by the name of ours under which it is read.
_LIKELY = [("prompt", "question"), ("prompt", "instruction"), ("prompt", "problem"), ("messages", "conversations")]

Row = tuple[int, Mapping[str, Any]]  # line (CSV, JSONL) or number (else) of the row, from 1; the row


class Source:
    """The source of a set's rows, and its name in messages."""

    def __init__(self, prompts: PromptSet, where: str) -> None:
        self.prompts, self.where = prompts, where
        self.path = shipped.locate("data", prompts.path) if prompts.path is not None else Path()
        self.name = str(self.path) if prompts.path is not None else f"{prompts.dataset_name}[{prompts.split}]"
        self.has_lines = self.path.suffix in (".jsonl", ".ndjson", ".csv")
        self.unit = "line" if self.has_lines else "row"
        self._alone = where.startswith("--")  # an option named the file: no recipe has a key for it

    def error(
        self, line: int | None, message: str, hint: str | None = None, column: int | None = None, *, rule: str
    ) -> DataError:
        if line is not None and not self.has_lines:
            return DataError(f"row {line}: {message}", file=self.name, hint=hint, rule=rule)
        return DataError(message, file=self.name, line=line, column=column, hint=hint, rule=rule)

    def rows(self) -> Iterator[Row]:
        if self.prompts.path is None:
            return self._hub()
        readers = {".jsonl": self._jsonl, ".ndjson": self._jsonl, ".csv": self._csv, ".parquet": self._parquet}
        if self.path.suffix not in readers:
            message = f"cannot read {self.path.suffix or 'this'} files"
            raise self.error(None, message, "write JSONL, Parquet or CSV", rule="data-file-kind")
        if not self.path.exists():
            hint = None if self._alone else f"see {self.where}.path in the recipe"
            raise self.error(None, "no such file", hint, rule="data-no-such-file")
        return self._told(readers[self.path.suffix]())

    def _told(self, rows: Iterator[Row]) -> Iterator[Row]:
        try:
            yield from rows
        except (OSError, EOFError, csv.Error) as error:
            raise unreadable(self.path, error) from None

    def rename(self, line: int, row: Mapping[str, Any], *, for_rewards: bool = False) -> dict[str, Any]:
        """The row under our column names. `for_rewards`: reward functions are given its columns by their names."""
        columns = self.prompts.columns
        renamed = {ours: self._value(line, row, ours, theirs) for ours, theirs in columns.items()}
        taken = {*columns, *(name for theirs in columns.values() for name in _several(theirs))}
        made = {ours: value for ours, value in renamed.items() if columns[ours] is not None}
        made |= {name: value for name, value in row.items() if name not in taken}
        if not has_prompt(made):
            likely = next((each for each in _LIKELY if each[1] in row), ("prompt", "THEIRS"))
            by_key = f"in the recipe write {self.where}.columns: {{{likely[0]}: {likely[1]}}}"
            hint = f"{_has(row)}; {'call one of them prompt' if self._alone else by_key}"
            raise self.error(line, "no column 'prompt'", hint, rule="data-no-column")
        for name in RESERVED if for_rewards else ():
            if name in made:
                hint = f"rename it: {self.where}.columns: {{my_{name}: {name}}}; or leave it out: {{{name}: null}}"
                message = f"a column may not be called {name!r}: rewards have an argument of that name"
                raise self.error(line, message, hint, rule="data-reserved-column")
        return made

    def _value(self, line: int, row: Mapping[str, Any], ours: str, theirs: str | list[str] | None) -> Any:
        """One column's value, or the texts of several with an empty line between them; null ones are left out."""
        for name in [ours] if theirs is None else _several(theirs):
            if name not in row:
                near = did_you_mean(name, row)
                hint = f"{self.where}.columns asks for it as {ours!r}; {_has(row)}"
                raise self.error(line, f"no column {name!r}{near}", hint, rule="data-no-column")
        if not isinstance(theirs, list):
            return None if theirs is None else row[theirs]
        for name in theirs:
            if row[name] is not None and not isinstance(row[name], str):
                message = f"{name!r} must be text to be joined to others, not {kind(row[name])}"
                raise self.error(line, message, rule="data-join")
        return "\n\n".join(row[name] for name in theirs if row[name])

    def _jsonl(self) -> Iterator[Row]:
        with open_lines(self.path) as lines:
            for line, raw in enumerate(lines, 1):
                if len(raw) > MOST_ROW:
                    raise too_long(self.path, line)
                yield line, self._object(line, raw)

    def _object(self, line: int, raw: bytes) -> dict[str, Any]:
        try:
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            message = f"not UTF-8 text (byte {error.start + 1} of the line)"
            raise self.error(line, message, "save the file as UTF-8", rule="data-not-utf8") from None
        if not text.strip():
            raise self.error(line, "the line is empty", "take it out: one JSON object a line", rule="data-empty-line")
        try:
            row = json.loads(text.rstrip("\r\n"), parse_constant=no_constant, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            column = error.colno if isinstance(error, json.JSONDecodeError) else None
            hint = "one JSON object a line"
            raise self.error(line, f"invalid JSON: {message}", hint, column, rule="data-invalid-json") from None
        if not isinstance(row, dict):
            message = f"not a JSON object but {kind(row)}"
            raise self.error(line, message, "one JSON object a line", rule="data-not-an-object")
        if "\\ud" in text.lower() and not _is_text(row):
            message = "half of a character, written as \\ud800 to \\udfff, is no text"
            hint = "write the character itself, as UTF-8, or take the row out"
            raise self.error(line, message, hint, rule="data-half-character")
        return row

    def _csv(self) -> Iterator[Row]:
        try:
            with open_lines(self.path) as lines:
                rows = csv_rows(lines, self.path, strict=True)
                _, _, header = next(rows, (1, 0, []))
                if len(set(header)) != len(header):
                    raise self.error(1, "two columns have one name", rule="data-csv")
                for line, _, values in rows:
                    if len(values) != len(header):
                        message = f"{len(values)} values for {len(header)} columns"
                        raise self.error(line, message, rule="data-csv")
                    yield line, {name: value or None for name, value in zip(header, values, strict=True)}
        except UnicodeDecodeError as error:
            message = f"not UTF-8 text (byte {error.start + 1} of a line)"
            raise self.error(None, message, "save the file as UTF-8", rule="data-not-utf8") from None

    def _parquet(self) -> Iterator[Row]:
        import pyarrow as pa

        from posttrain.data.parquet_batches import batches, metadata, values

        first = 1
        try:
            for batch in batches(self.path, metadata(self.path)):
                yield from enumerate(values(batch, self.error, first), first)
                first += batch.num_rows
        except pa.ArrowException as error:
            message = f"not a Parquet file that can be read: {str(error).splitlines()[0]}"
            raise self.error(None, message, rule="data-corrupt") from None

    def _hub(self) -> Iterator[Row]:
        from datasets import load_dataset

        given = self.prompts
        try:
            table = load_dataset(given.dataset_name or "", given.name, split=given.split, revision=given.revision)
        except Exception as error:  # the library raises whatever the network, the Hub or a reader raised
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            hint = f"check name and split; without network, read a file: --set {self.where}.path=./FILE.jsonl"
            message = f"the data set could not be had from the Hub: {cause}"
            raise self.error(None, message, hint, rule="data-hub") from None
        return ((number, dict(row)) for number, row in enumerate(table, 1))


def cut(rows: Iterator[Row], part: str | None) -> Iterator[Row]:
    """A slice of the rows. Those behind a slice from the front are not read; one from the end has all in memory."""
    start, _, stop = (part or ":").partition(":")
    first, last = int(start) if start else None, int(stop) if stop else None
    if (first or 0) < 0 or (last or 0) < 0:
        return iter(list(rows)[first:last])
    return islice(rows, first, last)


def _has(row: Mapping[str, Any]) -> str:
    return f"the columns are {', '.join(map(repr, row))}"


def _is_text(row: Mapping[str, Any]) -> bool:
    """Whether UTF-8 has all that stands in the row."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _several(theirs: str | list[str] | None) -> list[str]:
    return [theirs] if isinstance(theirs, str) else theirs or []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"duplicate key {twice!r}")
    return made
