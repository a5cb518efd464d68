"""`posttrain filter`: what it reads, what it writes, and that bad input is counted or named, never a crash halfway."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.judges import FakeJudge, gives, judged, serving
from typer.testing import CliRunner

from posttrain.cli import app
from posttrain.data import row_files
from posttrain.data.row_files import open_rows
from posttrain.errors import DataError, EngineError, InputError

RECIPE = """\
extends: quickstart
filters:
  - {use: format}
  - {use: length, max_tokens: 6}
  - {use: exact-duplicates}
"""
ROWS = [
    {"id": 1, "prompt": "How many?", "completion": "There are 12."},
    {"id": 2, "prompt": "How many?", "completion": "There  are 12."},
    {"id": 3, "prompt": "And now?", "completion": ""},
    {"id": 4, "prompt": "And now?", "completion": "one two three four five six seven"},
    {"id": 5, "prompt": "And now?", "completion": "13<|im_end|>"},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


def command(*arguments: str | Path, recipe: str = "mine.yaml") -> dict[str, Any]:
    """The counts, after a look that they add up and are those of the files."""
    result = CliRunner().invoke(app, ["filter", *map(str, arguments), "--recipe", recipe, "--out", "out", "--json"])
    if result.exception:
        raise result.exception
    figures = json.loads(result.stdout)
    assert figures["rows"] == figures["kept"] + sum(figures["dropped"].values())
    assert (len(kept()), len(dropped())) == (figures["kept"], sum(figures["dropped"].values()))
    flow = figures["filters"]
    assert [one["in"] for one in flow] + [figures["kept"]] == [figures["rows"]] + [one["out"] for one in flow]
    return figures


def kept() -> list[dict[str, Any]]:
    return pq.read_table("out/kept.parquet").to_pylist()


def dropped() -> list[dict[str, Any]]:
    return pq.read_table("out/dropped.parquet").to_pylist()


def write(name: str, rows: list[dict[str, Any]]) -> Path:
    path = Path(name)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".csv"):
        path.write_text(
            "id,prompt,completion\n" + "".join("{id},{prompt},{completion}\n".format(**row) for row in rows)
        )
    else:
        jsonl(path, rows)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.parquet", "in.csv"])
def test_kept_and_dropped_rows_of_every_format(folder: Path, name: str):
    figures = command(write(name, ROWS))
    number = str if name.endswith(".csv") else int
    assert [row["id"] for row in kept()] == [number(1)]
    assert [(row["id"], row["filter"], row["reason"], row["figure"]) for row in dropped()] == [
        (number(2), "exact-duplicates", "duplicate", 2),
        (number(3), "format", "empty answer", 0),
        (number(4), "length", "too long", 7),
        (number(5), "format", "control token", 1),
    ]
    assert figures["dropped"] == {
        "format: empty answer": 1,
        "format: control token": 1,
        "length: too long": 1,
        "exact-duplicates: duplicate": 1,
    }


def test_the_input_stays_as_it_was(folder: Path):
    rows = [{"prompt": "p", "completion": "fine", "meta": {"a": [1, None], "b": "x"}, "n": 1.5, "none": None}]
    rows += [{"prompt": "q", "completion": "", "meta": {"a": [], "b": None}, "n": 2, "more": ["y"]}]
    command(jsonl(folder / "in.jsonl", rows))
    assert kept() == [rows[0] | {"more": None}]
    lost = dropped()[0]
    assert {name: lost[name] for name in rows[1]} == rows[1] and lost["none"] is None


@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": "How many?", "chosen": "12", "rejected": "<|im_end|>"},
        {
            "prompt": [{"role": "user", "content": "How many?"}],
            "chosen": [{"role": "assistant", "content": "12"}],
            "rejected": [{"role": "assistant", "content": ""}],
        },
        {  # the prompt stands in both
            "chosen": [{"role": "user", "content": "User: ?"}, {"role": "assistant", "content": "12"}],
            "rejected": [{"role": "user", "content": "User: ?"}, {"role": "assistant", "content": ""}],
        },
        {
            "prompt": "User: ?",
            "chosen": [{"role": "user", "content": "User: ?"}, {"role": "assistant", "content": "1"}],
        },
        {"messages": [{"role": "user", "content": "User: ?"}, {"role": "assistant", "content": "12"}]},
    ],
)
def test_a_pair_is_judged_by_its_chosen_answer_and_a_chat_by_its_last(folder: Path, pair: dict[str, Any]):
    good = jsonl(folder / "good.jsonl", [pair])
    assert command(good)["kept"] == 1
    for name in ("chosen", "messages"):
        if isinstance(pair.get(name), str):
            pair[name] = "User: and?"
        elif name in pair:
            pair[name][-1]["content"] = "User: and?"
    (folder / "out").rename(folder / "before")
    assert command(jsonl(folder / "bad.jsonl", [pair]))["dropped"] == {"format: role confusion": 1}


def test_what_is_no_row_is_counted_with_its_line(folder: Path):
    good = {"prompt": "p", "completion": "fine"}
    lines = [good, b"\n", b'{"prompt": "caf\xe9"}\n', b'{"prompt": "p", "comp\n', b"[1, 2]\n", b'{"prompt": NaN}\n']
    lines += [{"prompt": "\ud800", "completion": "half of a character"}, good | {"prompt": "q"}]
    command(jsonl(folder / "in.jsonl", lines))
    assert [row["prompt"] for row in kept()] == ["p", "q"]
    assert [(row["filter"], row["reason"], row["figure"]) for row in dropped()] == [
        ("read", "empty line", 2),
        ("read", "not UTF-8", 3),
        ("read", "invalid JSON", 4),
        ("read", "not a JSON object with columns", 5),
        ("read", "invalid JSON", 6),
        ("read", "not UTF-8", 7),
    ]


def test_text_that_is_no_utf8_in_parquet_and_csv(folder: Path):
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(pa.table({"prompt": ["x", "y", "z"], "completion": texts}), "in.parquet")
    command("in.parquet")
    assert [row["prompt"] for row in kept()] == ["x", "z"]
    assert [(row["reason"], row["figure"]) for row in dropped()] == [("not UTF-8", 2)]
    (folder / "out").rename(folder / "before")
    (folder / "in.csv").write_bytes(b'prompt,completion\nx,a\ny,\xff\nz,"b\n\nb"\nx\n')
    command("in.csv")
    assert [row["prompt"] for row in kept()] == ["x", "z"]
    lost = [(row["reason"], row["figure"]) for row in dropped()]
    assert lost == [("not UTF-8", 3), ("another number of values than columns", 7)]


def test_rows_of_a_megabyte(folder: Path):
    words = " ".join(str(i) for i in range(170_000))
    rows = [{"prompt": words, "completion": words}, {"prompt": "p", "completion": "ok"}]
    assert command(jsonl(folder / "in.jsonl", rows))["dropped"] == {"length: too long": 1}


def test_batches_are_bounded_and_columns_are_those_of_all_of_them(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_files, "BATCH_ROWS", 2)
    rows = [{"completion": None}, {"completion": "b"}, {"completion": "c", "n": 1}, {"completion": "d", "n": 1.5}]
    file = open_rows(jsonl(folder / "in.jsonl", [*rows, b"\n"]))
    parts = list(file.parts())
    assert [part.rows.num_rows for part in parts] == [2, 2, 0] and parts[2].unread == [(5, "empty line")]
    assert file.schema == pa.schema([("completion", pa.string()), ("n", pa.float64())])
    pq.write_table(pa.table({"completion": ["x" * 1000] * 5}), "in.parquet")
    monkeypatch.setattr(row_files, "BATCH_BYTES", 100)
    pq.write_table(pa.table({"completion": [f"{i}" * 1000 for i in range(40)]}), "in.parquet", use_dictionary=False)
    assert [part.rows.num_rows for part in open_rows(Path("in.parquet")).parts()] == [16, 16, 8]


@pytest.mark.parametrize(
    ("content", "message", "rule"),
    [
        (b"", "the file holds no rows", "data-no-rows"),
        (b"\n\n", "line 1: empty line", "data-no-rows"),
        (b'{"prompt": "p", "answer": "a"}\n', "no column 'completion', 'chosen', 'messages'", "filter-no-answer"),
        (
            b'{"chosen": "a"}\n',
            "in.jsonl: there is no column 'prompt', and in plain text nothing says",
            "filter-no-prompt",
        ),
        (b'{"completion": "a"}\n{"completion": 3}\n', "in.jsonl:2: does not fit the rows before", "data-column-type"),
        (
            b'{"prompt": "p", "completion": 3}\n',
            "in.jsonl: prompts and completions must be text or chat messages",
            "filter-text",
        ),
        (b'{"completion": "a", "n": 1%s}\n' % (b"0" * 30), "in.jsonl:1: does not fit", "data-column-type"),
        (b'{"completion": "a", "meta": {}}\n', "'meta' holds empty objects only", "data-empty-objects"),
        (
            b'{"prompt": "p", "completion": "a", "reason": "b"}\n',
            "have a column 'reason' already",
            "filter-column-taken",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_said_before_anything_is_written(
    folder: Path, content: bytes, message: str, rule: str
):
    (folder / "in.jsonl").write_bytes(content)
    with pytest.raises(DataError) as caught:
        command("in.jsonl")
    assert message in str(caught.value) and caught.value.rule == rule
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "mine.yaml"]


@pytest.mark.parametrize(
    ("name", "content", "message", "rule"),
    [
        ("in.parquet", b"no parquet", "in.parquet: cannot be read", "data-corrupt"),
        ("in.jsonl.gz", b"no gzip", "in.jsonl.gz: cannot be read", "data-corrupt"),
        ("in.txt", b"text", "cannot read .txt files", "data-file-kind"),
        ("none.jsonl", None, "no such file", "data-no-such-file"),
    ],
)
def test_a_file_of_another_kind(folder: Path, name: str, content: bytes | None, message: str, rule: str):
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        command(name)
    assert caught.value.rule == rule


def test_a_folder_that_is_there_is_not_written_into(folder: Path):
    source = jsonl(folder / "in.jsonl", ROWS)
    (folder / "out").mkdir()
    command(source)
    before = (folder / "out" / "kept.parquet").read_bytes()
    with pytest.raises(InputError, match="out exists already") as caught:
        command(source)
    assert (caught.value.rule, caught.value.hint) == ("filter-output", "name another folder by --out, or remove it")
    assert (folder / "out" / "kept.parquet").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_told(folder: Path):
    source = jsonl(folder / "in.jsonl", ROWS)
    result = CliRunner().invoke(app, ["filter", str(source), "--recipe", "mine.yaml", "--out", "in.jsonl/out"])
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith("in.jsonl/out: cannot be made: ")


def test_a_filter_that_lacks_something_says_so_and_how_to_do_without(folder: Path):
    (folder / "mine.yaml").write_text(RECIPE + "  - {use: best-of-k}\n")
    source = jsonl(folder / "in.jsonl", ROWS)
    with pytest.raises(DataError, match="'best-of-k' needs a column 'score'") as caught:
        command(source)
    assert caught.value.hint is not None
    without = caught.value.hint.split("--set ")[1].strip("'")
    assert command(source, "--set", without)["kept"] == 1
    (folder / "out").rename(folder / "before")
    with pytest.raises(DataError, match="'quality' needs a column 'score'"):
        command(write("in.parquet", ROWS), "--set", "filters=[{use: quality}]")
    source = jsonl(folder / "in.jsonl", [{"prompt": p, "completion": "a", "score": 1.0} for p in "abc"])
    with pytest.raises(DataError, match="'best-of-k' needs several answers to a prompt"):
        command(source)
    several = [{"prompt": p, "completion": f"{s}", "score": s} for p in "ab" for s in (0.1, 0.9)]
    command(jsonl(source, several))
    assert [row["score"] for row in kept()] == [0.9, 0.9]


OVERLAP = "filters=[{use: overlap}]"


@pytest.mark.parametrize(
    "pair",
    [
        {"prompt": "How many?", "chosen": "12", "rejected": "13"},
        {"chosen": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "12"}], "rejected": []},
        {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "12"}]},
    ],
)
def test_a_judge_reads_pairs_and_chats_too(folder: Path, pair: dict[str, Any]):
    fake = FakeJudge(lambda question: gives(4 if judged(question, "PROMPT") == "How many?" else 1)(question))
    with serving(fake) as url:
        judge = {"url": url, "model": "big", "attempts": 1}
        figures = command(*by_judge(jsonl(folder / "in.jsonl", [pair]), judge))
    assert figures["dropped"] == {"judge: judged too low": 1} and dropped()[0]["figure"] == 4
    assert judged(fake.bodies[-1]["messages"][0]["content"]) == "12"


def test_what_a_judge_said_before_it_went_away_is_not_asked_again(folder: Path):
    source = jsonl(folder / "in.jsonl", [{"prompt": "p", "completion": f"answer {at}"} for at in range(9)])
    fake = FakeJudge(gives(5))
    with serving(fake) as url:
        judge = {"url": url, "model": "big", "patience": 0.3, "at_once": 1}
        fake.fails_after = 5
        with pytest.raises(EngineError, match="the same command goes on from there"):
            command(*by_judge(source, judge))
        asked, fake.fails_after = 4, None  # beside the plain question that it is tried with
        before = len(fake.bodies)
        figures = command(*by_judge(source, judge))
    assert len(fake.bodies) - before == 1 + 9 - asked
    assert figures["kept"] == 9 and figures["judges"]["quality"]["texts"] == 9
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "mine.yaml", "out"]


def by_judge(source: Path, judge: dict[str, Any]) -> list[str | Path]:
    return [source, "--set", "filters=" + json.dumps([{"use": "judge", "rubric": "quality.md", "judge": judge}])]


def test_evaluation_sets(folder: Path):
    rows = [{"prompt": p, "completion": "a"} for p in ("Is this asked?", "And this one?", "Not this.")]
    source = jsonl(folder / "in.jsonl", rows)
    jsonl(folder / "a.jsonl", [{"question": "is this asked", "answer": "1"}])
    jsonl(folder / "b.jsonl", [{"prompt": [{"role": "user", "content": "and this one?"}]}])
    command(source, "--set", OVERLAP, "--against", "a.jsonl", "--against", "b.jsonl")
    assert [row["prompt"] for row in kept()] == ["Not this."]
    (folder / "out").rename(folder / "before")
    jsonl(folder / "dev.jsonl", [{"prompt": "Not this"}])
    mine = ["--set", OVERLAP, "--set", "prompts.dev.path=./dev.jsonl"]
    command(source, *mine)  # by default the recipe's own
    assert [row["prompt"] for row in kept()] == ["Is this asked?", "And this one?"]


@pytest.mark.parametrize(
    ("content", "message", "rule"),
    [
        (None, "no such file", "data-no-such-file"),
        (b"", "holds no rows", "data-no-rows"),
        (b'{"prompt": " "}\n', "holds no text", "filter-evaluation-set"),
        (b'{"prompt": 3}\n', "eval.jsonl: prompts and completions must be text", "filter-text"),
        (b'{"text": "a"}\n', "needs one of the columns prompt, question", "filter-evaluation-set"),
        (b'{"prompt": "a"}\n{"pro', "eval.jsonl:2: invalid JSON", "filter-evaluation-set"),
    ],
)
def test_an_evaluation_set_that_is_missing_or_empty(folder: Path, content: bytes | None, message: str, rule: str):
    if content is not None:
        (folder / "eval.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        command(jsonl(folder / "in.jsonl", ROWS), "--against", "eval.jsonl")
    assert caught.value.rule == rule


def test_evaluation_sets_that_nothing_would_be_compared_with(folder: Path):
    with pytest.raises(InputError, match=r"no filter of the recipe compares with them \[command-options\]"):
        command(write("in.jsonl", ROWS), "--against", write("test.jsonl", ROWS))


def test_what_is_printed(folder: Path):
    source = jsonl(folder / "in.jsonl", [*ROWS, b"\n"])
    result = CliRunner().invoke(app, ["filter", str(source), "--recipe", "mine.yaml", "--out", "out"])
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["filter", "rows", "in", "rows", "out", "rows/s", "why"]
    assert lines[1].split()[:3] == ["read", "6", "5"] and lines[1].endswith("1 empty line")
    assert lines[2].split()[:3] == ["format", "5", "3"] and lines[2].endswith("1 empty answer, 1 control token")
    assert "kept 1 of 6 rows" in result.stdout
