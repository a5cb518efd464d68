"""Data files that are no plain rows of text: odd columns are carried by one rule, and what would not fit is refused."""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from posttrain import filters
from posttrain.config import PromptSet
from posttrain.data import load as loaders
from posttrain.data import parquet_batches, row_files, text_lines
from posttrain.data.json_values import as_json
from posttrain.data.load import content_hash, read_preferences, read_prompts
from posttrain.data.messages import Prompt
from posttrain.data.row_files import open_rows
from posttrain.data.text_lines import MOST_ROW
from posttrain.errors import DataError, InputError
from posttrain.filters import FilterContext
from posttrain.filters.file import filter_file

_DAY = dt.datetime(2024, 2, 29, 12, 30, 15, 250_000)


def read(path: Path, **keys: Any) -> list[Prompt]:
    return read_prompts(PromptSet(path=str(path), **keys))


def fails(read_: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        read_()
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([_DAY], pa.timestamp("us")), "2024-02-29T12:30:15.250000"),
        (pa.array([_DAY], pa.timestamp("ns")), "2024-02-29T12:30:15.250000"),
        (pa.array([1709209815250000001], pa.int64()).cast(pa.timestamp("ns")), "2024-02-29T12:30:15.250000"),
        (pa.array([_DAY], pa.timestamp("ms", "Europe/Paris")), "2024-02-29T12:30:15.250000+00:00"),
        (pa.array([_DAY.date()], pa.date32()), "2024-02-29"),
        (pa.array([_DAY.time()], pa.time64("ns")), "12:30:15.250000"),
        (pa.array([dt.timedelta(minutes=1.5)], pa.duration("ns")), 90.0),
        (pa.array([decimal.Decimal("1.50")], pa.decimal128(10, 2)), "1.50"),
        (pa.array([b"\x00\xff"], pa.binary()), "AP8="),
        (pa.array([b"\x00\xff"], pa.binary(2)), "AP8="),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        (pa.array([float("nan")], pa.float64()), None),
        (pa.array([float("inf")], pa.float32()), None),
        (pa.array([1.5], pa.float16()), 1.5),
        (pa.array([None], pa.null()), None),
        (pa.array(["a"], pa.large_string()), "a"),
        (pa.array(["a"], pa.string_view()), "a"),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([[{"when": _DAY, "n": [1, None]}]]), [{"when": "2024-02-29T12:30:15.250000", "n": [1, None]}]),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())), [["k", 1]]),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), [1.0, 2.0]),
    ],
    ids=lambda given: str(getattr(given, "type", "")),
)
def test_an_odd_column_is_carried_as_json_has_it(tmp_path: Path, column: pa.Array, expected: object) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["p"], "x": column}), path)
    (prompt,) = read(path)
    assert prompt.columns["x"] == expected and type(prompt.columns["x"]) is type(expected)
    json.dumps(dict(prompt.columns), allow_nan=False)
    assert content_hash(PromptSet(path=str(path)))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_prompts_and_answers_of_other_types_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    text = {"prompt": pa.array(["p", "q"]).cast(kind), "completion": pa.array(["a", ""]).cast(kind)}
    pq.write_table(pa.table({**text, "when": pa.array([_DAY] * 2)}), tmp_path / "in.parquet")
    assert [prompt.messages[0]["content"] for prompt in read(tmp_path / "in.parquet")] == ["p", "q"]
    chain = filters.parse([{"use": "format"}])
    figures = filter_file(tmp_path / "in.parquet", chain, FilterContext(), tmp_path / "out")
    assert figures["dropped"] == {"format: empty answer": 1}
    assert pq.read_table(tmp_path / "out" / "kept.parquet")["when"].to_pylist() == [_DAY]


def test_what_has_no_form_in_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        as_json(object())
    column = pa.array([2**60], pa.int64()).cast(pa.timestamp("ms"))  # in millions of years
    pq.write_table(pa.table({"prompt": ["p"], "x": column}), tmp_path / "in.parquet")
    error = fails(lambda: read(tmp_path / "in.parquet"))
    assert error.rule == "data-value" and "row 1" in str(error)


def test_text_that_is_not_utf8_in_parquet(tmp_path: Path) -> None:
    bad = pa.array([b"p", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": bad, "completion": ["a", "b"]}), tmp_path / "in.parquet")
    error = fails(lambda: read(tmp_path / "in.parquet"))
    assert error.rule == "data-not-utf8" and "row 2" in str(error)
    (part,) = open_rows(tmp_path / "in.parquet").parts()
    assert part.rows.num_rows == 1 and part.unread == [(2, "not UTF-8")]


def test_names_of_columns_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"complet\xffion\na\n")
    pq.write_table(pa.table({"prompt": ["p"], "completion": ["a"]}), tmp_path / "in.parquet", store_schema=False)
    written = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "in.parquet").write_bytes(written.replace(b"completion", b"complet\xffon"))
    for read_ in (read, open_rows):
        for name in ("in.csv", "in.parquet"):
            assert fails(lambda read_=read_, name=name: read_(tmp_path / name)).rule == "data-not-utf8"


def test_parquet_that_is_cut_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    """Arrow says so by an OSError, as of a disk that fails."""
    pq.write_table(pa.table({"prompt": ["p"], "completion": ["a"]}), tmp_path / "in.parquet")
    written = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "in.parquet").write_bytes(written[:-20] + written[-8:])
    for read_ in (read, open_rows):
        assert fails(lambda read_=read_: read_(tmp_path / "in.parquet")).rule == "data-corrupt"


_LONG = "x" * (MOST_ROW + 1)


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.parquet", "in.jsonl.gz"])
def test_a_row_has_a_bound(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [{"prompt": "p", "completion": "a"}, {"prompt": _LONG, "completion": "b"}, {"prompt": "q", "completion": ""}]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist([*rows, *rows[:1] * 20]), path)
    elif name.endswith(".csv"):
        path.write_text("prompt,completion\n" + "".join(f'"{row["prompt"]}",{row["completion"]}\n' for row in rows))
    else:
        with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    if not name.endswith(".gz"):  # prompts are not read from those
        error = fails(lambda: read(path))
        assert error.rule == "data-row-size"
        assert "row 2" in str(error) if name.endswith(".parquet") else error.line == (3 if "csv" in name else 2)
    if name.endswith(".csv"):
        assert fails(lambda: open_rows(path)).rule == "data-row-size"
    else:
        parts = list(open_rows(path).parts())
        assert [each for part in parts for each in part.unread] == [(2, "longer than 10 MB")]


def test_a_csv_row_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("prompt,completion\n" + '"a\n","b\n",' * 1_500_000)
    error = fails(lambda: read(tmp_path / "in.csv"))
    assert (error.rule, error.line) == ("data-row-size", 2)


def test_parquet_that_inflates_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_batches, "_MOST_CHUNK", 20_000_000)
    huge = pa.array(["p" * 25_000_000] + ["q"] * 100)
    pq.write_table(pa.table({"prompt": huge}), tmp_path / "value.parquet", compression="zstd")
    zeros = pa.array([[0] * 1_500_000], pa.list_(pa.int8()))
    pq.write_table(pa.table({"prompt": ["p"], "x": zeros}), tmp_path / "list.parquet")
    pq.write_table(pa.table({"prompt": ["p" * 11_000_000]}), tmp_path / "row.parquet", compression="zstd")
    assert all(path.stat().st_size < 100_000 for path in tmp_path.iterdir())
    for name, rule in [("value", "data-bomb"), ("list", "data-row-size"), ("row", "data-row-size")]:
        path = tmp_path / f"{name}.parquet"
        assert fails(lambda path=path: read(path)).rule == rule
        assert fails(lambda path=path: list(open_rows(path).parts())).rule == rule


def test_parquet_on_which_arrow_ends_the_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its schema says that no value is missing (0 in place of 2), the histogram of its column that one may be."""
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["p", None]}), path, store_schema=False)
    before = path.read_bytes()
    path.write_bytes(before.replace(b"\x15\x0c%\x02", b"\x15\x0c%\x00"))
    assert path.read_bytes() != before
    for refused in (lambda: read(path), lambda: open_rows(path)):
        error = fails(refused)
        assert (error.rule, error.file) == ("data-corrupt", str(path))
        assert "SIGABRT" in str(error)
    assert capfd.readouterr().err == ""


def test_one_long_value_named_by_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = pa.array(["p" * 1_000_000] * 60)
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": column}), path, dictionary_pagesize_limit=1 << 24, compression="zstd")
    monkeypatch.setattr(parquet_batches, "_BYTES", 3_000_000)
    assert len(read(path)) == 1
    assert [part.rows.nbytes < 25_000_000 for part in open_rows(path).parts()] == [True] * 4
    monkeypatch.setattr(text_lines, "MOST_INFLATED", 50_000_000)
    assert fails(lambda: read(path)).rule == "data-bomb"


def test_gz_that_inflates_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MOST_INFLATED", 500_000)
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        file.writelines(['{"completion": "a"}\n'] * 30_000)
    assert fails(lambda: open_rows(tmp_path / "in.jsonl.gz")).rule == "data-bomb"


def test_a_set_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "MOST_SET", 100_000)
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "completion": "a" * 9000}) + "\n" for i in range(300)))
    error = fails(lambda: read(path))
    assert error.rule == "data-set-size" and error.line and error.hint and f"rows: ':{error.line - 1}'" in error.hint
    assert len(read(path, rows=f":{error.line - 1}")) == error.line - 1  # answers are no part of prompts
    pairs = [{"prompt": f"p{i}", "chosen": "a" * 9000, "rejected": "b"} for i in range(300)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert fails(lambda: read_preferences(PromptSet(path=str(path)))).rule == "data-set-size"


def test_a_slice_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\nno JSON\n')
    assert [prompt.line for prompt in read(tmp_path / "in.jsonl", rows="1:3")] == [2, 3]
    assert fails(lambda: read(tmp_path / "in.jsonl", rows="-2:")).rule == "data-invalid-json"


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_only_regular_files_are_data(tmp_path: Path, ending: str) -> None:
    pipe, link, folder = (tmp_path / f"{name}{ending}" for name in ("pipe", "link", "folder"))
    os.mkfifo(pipe)
    link.symlink_to("/proc/self/status")
    folder.mkdir()
    for path in (pipe, link, folder):
        assert fails(lambda path=path: read(path)).rule == "data-not-regular"
        assert fails(lambda path=path: open_rows(path)).rule == "data-not-regular"
        assert fails(lambda path=path: content_hash(PromptSet(path=str(path)))).rule == "data-not-regular"


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_sparse_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"in{ending}"
    with path.open("wb") as file:
        file.truncate(16 << 30)
    rules = {".parquet": "data-corrupt"}
    assert fails(lambda: read(path)).rule == rules.get(ending, "data-row-size")
    assert fails(lambda: open_rows(path)).rule == rules.get(ending, "data-row-size")


def test_a_wide_table(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"completion": "a", f"k{i}": 1}) + "\n" for i in range(2000)))
    assert fails(lambda: open_rows(path)).rule == "data-columns"
    path.write_text("".join(json.dumps({"completion": "a", "x": {f"k{i}": 1}}) + "\n" for i in range(2000)))
    assert fails(lambda: open_rows(path)).rule == "data-columns"
    assert row_files.MOST_COLUMNS == 1000


def test_a_rule_without_a_line_is_kept(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": [{"role": "user"}]}\n')
    error = fails(lambda: read(tmp_path / "in.jsonl"))
    assert isinstance(error, DataError) and (error.rule, error.line) == ("data-message-form", 1)
