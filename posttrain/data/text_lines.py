"""Lines and CSV rows of a bounded length, out of files that may be compressed."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from posttrain.errors import DataError
from posttrain.storage.regular_files import open_regular

MOST_ROW = 10_000_000  # bytes of a row: some two million tokens
_MOST_PASSED = 100_000_000  # bytes of too long a line that are read over
MOST_INFLATED, MOST_RATIO = 500_000_000, 100  # bytes, where there are more than so many times of the file's own


class Lines:
    """The lines of a file, plain or gz, as bytes. One that is longer than MOST_ROW comes cut, with more than that."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.read, self._file, self._path = 0, file, path
        self._size = path.stat().st_size

    def __iter__(self) -> Iterator[bytes]:
        while raw := self._readline():
            yield raw
            passed = 0
            while len(raw) > MOST_ROW and not raw.endswith(b"\n"):
                raw = self._readline()
                passed += len(raw)
                if passed > _MOST_PASSED:
                    raise DataError("a line has more than 100 MB", file=str(self._path), rule="data-row-size")

    def _readline(self) -> bytes:
        raw = self._file.readline(MOST_ROW + 1)
        self.read += len(raw)
        if inflated(self.read, self._size):
            message = f"inflates to more than {MOST_RATIO} times its size"
            raise DataError(message, file=str(self._path), hint="unpack it first", rule="data-bomb")
        return raw


def inflated(read: int, size: int) -> bool:
    """Whether a file of `size` bytes has given more than one of honest data would."""
    return read > MOST_INFLATED and read > MOST_RATIO * size


@contextmanager
def open_lines(path: Path) -> Iterator[Lines]:
    """A regular file to be read line by line, unpacked where its name ends with .gz.

    Raises:
        NotRegularError, OSError: it cannot be read.
    """
    with open_regular(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield Lines(cast(BinaryIO, unpacked), path)
        else:
            yield Lines(file, path)


def csv_rows(lines: Lines, path: Path, *, strict: bool) -> Iterator[tuple[int, int, list[str]]]:
    """Of each row of a CSV file its first line, its length and its values. What is no UTF-8 comes as surrogates where
    it is not `strict`.

    Raises:
        DataError: a row is longer than MOST_ROW.
        csv.Error: it is no CSV.
        UnicodeDecodeError: with `strict`.
    """
    csv.field_size_limit(MOST_ROW)
    first, length = 1, 0

    def decoded() -> Iterator[str]:
        nonlocal length
        for number, raw in enumerate(lines):
            length += len(raw)
            if length > MOST_ROW:
                raise too_long(path, first)
            yield raw.decode("utf-8-sig" if number == 0 else "utf-8", "strict" if strict else "surrogateescape")

    reader = csv.reader(decoded(), strict=strict)
    for values in reader:
        yield first, length, values
        first, length = reader.line_num + 1, 0


def too_long(path: Path, line: int) -> DataError:
    return DataError(
        f"the row has more than {MOST_ROW // 1_000_000} MB",
        file=str(path),
        line=line,
        hint="take the row out, or cut it",
        rule="data-row-size",
    )


def no_constant(name: str) -> NoReturn:
    """For `parse_constant` of `json`. Raises ValueError: NaN and the infinities are not JSON."""
    raise ValueError(f"{name} is not JSON")


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file whose reading failed: refused by the system, or not of the format that its name says."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, csv.Error):
        return DataError(f"invalid CSV: {said}", file=str(path), rule="data-csv")
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"cannot be read: {error.strerror}", file=str(path), rule="data-unreadable")
    return DataError(f"cannot be read: {said}", file=str(path), rule="data-corrupt")
