"""Prompt sets: what comes out of each kind of file, and where each message points."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.config import PromptSet
from posttrain.data.load import content_hash, read_prompts
from posttrain.data.messages import Prompt
from posttrain.errors import DataError

ROWS = [{"prompt": "Two and two?", "answer": "4"}, {"prompt": "A note, please.", "answer": None}]


def write(folder: Path, text: str | bytes, name: str = "set.jsonl") -> PromptSet:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return PromptSet(path=str(path))


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def fails(prompts: PromptSet, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_prompts(prompts, **options)
    assert caught.value.exit_code == 2
    return caught.value


def contents(prompts: list[Prompt]) -> list[tuple[str, Any]]:
    return [(prompt.messages[-1]["content"], prompt.columns.get("answer")) for prompt in prompts]


class TestFiles:
    def test_jsonl(self, tmp_path: Path) -> None:
        prompts = read_prompts(write(tmp_path, lines(*ROWS)))
        assert contents(prompts) == [("Two and two?", "4"), ("A note, please.", None)]
        assert [prompt.line for prompt in prompts] == [1, 2]
        assert prompts[0].messages == ({"role": "user", "content": "Two and two?"},)

    def test_parquet_gives_the_same(self, tmp_path: Path) -> None:
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "set.parquet")
        prompts = read_prompts(PromptSet(path=str(tmp_path / "set.parquet")))
        assert prompts == read_prompts(write(tmp_path, lines(*ROWS)))

    def test_csv_gives_text_and_null(self, tmp_path: Path) -> None:
        prompts = read_prompts(write(tmp_path, 'prompt,answer\n"Two\nand two?",4\n"A note, please.",\n', "set.csv"))
        assert contents(prompts) == [("Two\nand two?", "4"), ("A note, please.", None)]
        assert [prompt.line for prompt in prompts] == [2, 4]

    def test_messages(self, tmp_path: Path) -> None:
        talk = [
            {"role": "user", "content": "Two and two?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "And three?"},
        ]
        (prompt,) = read_prompts(write(tmp_path, lines({"prompt": talk})))
        assert list(prompt.messages) == talk

    def test_columns_are_renamed_and_the_rest_kept(self, tmp_path: Path) -> None:
        path = write(tmp_path, lines({"question": "Q", "prompt": "old", "solution": "S", "level": 3})).path
        (prompt,) = read_prompts(PromptSet(path=path, columns={"prompt": "question", "answer": "solution"}))
        assert prompt.messages[0]["content"] == "Q"
        assert prompt.columns == {"answer": "S", "level": 3}

    def test_a_system_message_where_there_is_none(self, tmp_path: Path) -> None:
        own = [{"role": "system", "content": "Be curt."}, {"role": "user", "content": "Hello?"}]
        first, second = read_prompts(write(tmp_path, lines({"prompt": "Hi?"}, {"prompt": own})), "Be kind.")
        assert [first.messages[0]["content"], second.messages[0]["content"]] == ["Be kind.", "Be curt."]

    @pytest.mark.parametrize(
        ("rows", "expected"), [(":2", "ab"), ("-1:", "d"), ("1:3", "bc"), (":-1", "abc"), (":", "abcd")]
    )
    def test_a_slice(self, tmp_path: Path, rows: str, expected: str) -> None:
        path = write(tmp_path, lines(*({"prompt": text} for text in "abcd"))).path
        prompts = read_prompts(PromptSet(path=path, rows=rows))
        assert "".join(prompt.messages[0]["content"] for prompt in prompts) == expected

    def test_copies_are_read_once_and_counted(self, tmp_path: Path) -> None:
        counts: Counter[str] = Counter()
        prompts = read_prompts(write(tmp_path, lines(*ROWS, *ROWS)), counts=counts)
        assert len(prompts) == 2 and counts == {"duplicate": 2}

    @given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, unique=True))
    @settings(max_examples=50, deadline=None)
    def test_any_text_comes_through(self, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
        prompts = read_prompts(write(tmp_path_factory.mktemp("any"), lines(*({"prompt": text} for text in texts))))
        assert [prompt.messages[0]["content"] for prompt in prompts] == texts


class TestMessages:
    @pytest.mark.parametrize(
        ("text", "where", "expected", "rule"),
        [
            ('{"prompt": "a"}\n\n{"prompt": "b"}\n', ":2: ", "the line is empty", "data-empty-line"),
            (
                '{"prompt": "a"}\n{"prompt": "b"\n',
                ":2:15: ",
                "invalid JSON: Expecting ',' delimiter",
                "data-invalid-json",
            ),
            ('{"prompt": "a \\uD800"}\n', ":1: ", "half of a character", "data-half-character"),
            ('{"prompt": "a", "n": NaN}\n', ":1: ", "invalid JSON: NaN is not JSON", "data-invalid-json"),
            (
                '{"prompt": "a", "prompt": "b"}\n',
                ":1: ",
                "invalid JSON: duplicate key 'prompt'",
                "data-invalid-json",
            ),
            ('["a"]\n', ":1: ", "not a JSON object but a list", "data-not-an-object"),
            (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', ":2: ", "not UTF-8 text (byte 13 of the line)", "data-not-utf8"),
            ('{"question": "a"}\n', ":1: ", "no column 'prompt'", "data-no-column"),
            (
                '{"prompt": 3}\n',
                ":1: ",
                "'prompt' must be text or a list of messages, not a number",
                "data-message-form",
            ),
            ('{"prompt": null}\n', ":1: ", "not null", "data-message-form"),
            ('{"prompt": []}\n', ":1: ", "not an empty list", "data-message-form"),
            ('{"prompt": "a"}\n{"prompt": " "}\n', ":2: ", "the prompt is empty", "data-no-prompt"),
            (
                '{"prompt": [{"role": "usr", "content": "a"}]}\n',
                ":1: ",
                "the role 'usr', did you mean 'user'?",
                "data-role",
            ),
            (
                '{"prompt": [{"role": "user", "content": 3}]}\n',
                ":1: ",
                "content must be text, not a number",
                "data-message-form",
            ),
            (
                '{"prompt": [{"content": "a"}]}\n',
                ":1: ",
                "message 0 of 'prompt' must hold role and content",
                "data-message-form",
            ),
            (
                '{"prompt": [{"role": "assistant", "content": "a"}]}\n',
                ":1: ",
                "the last message must be the user's",
                "data-turns",
            ),
            (
                '{"prompt": "a", "answer": "1"}\n{"prompt": "b"}\n',
                ":2: ",
                "no column 'answer', which line 1 has",
                "data-uneven-columns",
            ),
            (
                '{"prompt": "a", "answer": 1}\n{"prompt": "b", "anwser": 1}\n',
                ":2: ",
                "but there is 'anwser'",
                "data-uneven-columns",
            ),
            (
                '{"prompt": "a"}\n{"prompt": "b", "answer": 1}\n',
                ":2: ",
                "a column 'answer', which line 1 has not",
                "data-uneven-columns",
            ),
            (
                '{"prompt": "a", "x": 1}\n{"prompt": "a", "x": 2}\n',
                ":2: ",
                "the same prompt as in line 1, with another 'x'",
                "data-contradiction",
            ),
            (
                '{"prompt": "a", "completions": 1}\n',
                ":1: ",
                "a column may not be called 'completions'",
                "data-reserved-column",
            ),
            ("", ": ", "no rows", "data-no-rows"),
        ],
    )
    def test_jsonl(self, tmp_path: Path, text: str | bytes, where: str, expected: str, rule: str) -> None:
        error = fails(write(tmp_path, text))
        assert str(error).startswith(f"{tmp_path / 'set.jsonl'}{where}")
        assert expected in error.message and error.rule == rule

    def test_a_column_that_is_asked_for_by_another_name(self, tmp_path: Path) -> None:
        path = write(tmp_path, lines({"question": "Q"})).path
        error = fails(PromptSet(path=path, columns={"prompt": "qestion"}), where="prompts.dev")
        assert error.message == "no column 'qestion', did you mean 'question'?"
        assert error.hint is not None and "prompts.dev.columns" in error.hint

    def test_the_likely_column_is_named(self, tmp_path: Path) -> None:
        error = fails(write(tmp_path, lines({"question": "Q"})))
        assert error.hint is not None and "prompts.train.columns: {prompt: question}" in error.hint

    def test_csv(self, tmp_path: Path) -> None:
        error = fails(write(tmp_path, 'prompt,answer\n"a\nb",1\nc\n', "set.csv"))
        assert (error.line, error.message) == (4, "1 values for 2 columns")

    def test_parquet(self, tmp_path: Path) -> None:
        assert "not a Parquet file" in fails(write(tmp_path, "text", "set.parquet")).message
        pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "null.parquet")
        error = fails(PromptSet(path=str(tmp_path / "null.parquet")))
        assert error.message.startswith("row 2: 'prompt' must be text")

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        assert fails(PromptSet(path=str(tmp_path / "none.jsonl"))).message == "no such file"
        error = fails(write(tmp_path, "a", "set.xlsx"))
        assert (error.message, error.hint) == ("cannot read .xlsx files", "write JSONL, Parquet or CSV")

    def test_a_slice_that_leaves_nothing(self, tmp_path: Path) -> None:
        path = write(tmp_path, lines(*ROWS)).path
        assert fails(PromptSet(path=path, rows="5:")).message == "no rows are left by rows: 5:"

    def test_the_hub_without_network_says_how_to_do_without(self) -> None:
        error = fails(PromptSet(dataset_name="openai/gsm8k", name="main", split="test"), where="prompts.heldout")
        assert error.file == "openai/gsm8k[test]"
        assert error.hint is not None and "--set prompts.heldout.path=./FILE.jsonl" in error.hint


class TestContentHash:
    def test_it_changes_with_all_that_decides_and_not_with_the_place(self, tmp_path: Path) -> None:
        prompts = write(tmp_path, lines(*ROWS))
        (tmp_path / "other").mkdir()
        moved = write(tmp_path / "other", lines(*ROWS), "renamed.jsonl")
        assert content_hash(prompts) == content_hash(moved)
        others = [
            content_hash(prompts, "Be kind."),
            content_hash(PromptSet(path=prompts.path, rows=":1")),
            content_hash(PromptSet(path=prompts.path, columns={"reply": "answer"})),
            content_hash(write(tmp_path, lines(*reversed(ROWS)), "reversed.jsonl")),
        ]
        assert len({content_hash(prompts), *others}) == 5
