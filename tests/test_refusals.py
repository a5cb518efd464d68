"""Refusals that no other test has a place for, each by its rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from posttrain import filters
from posttrain.commands.stage import stage
from posttrain.config import PromptSet
from posttrain.config.tree import Place
from posttrain.data import selection
from posttrain.data.load import read_preferences, read_prompts
from posttrain.data.row_files import open_rows
from posttrain.errors import InputError
from posttrain.filters import FilterContext, quality_model
from posttrain.hub import plan
from posttrain.inference.models import Conversation
from posttrain.recipe.yaml_tree import parse
from posttrain.report.reading import Round, open_run
from posttrain.storage.store import Store


def fails(call: Callable[[], object]) -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.exit_code == 2 and str(caught.value).splitlines()[0].endswith(f"[{caught.value.rule}]")
    return caught.value


def test_commands(tmp_path: Path) -> None:
    assert fails(lambda: stage(tmp_path)).rule == "command-no-stage"
    (tmp_path / "file").touch()
    assert fails(lambda: Store(tmp_path / "file").session().__enter__()).rule == "command-run-folder"
    Store(tmp_path / "run").work.mkdir(parents=True)
    assert fails(lambda: open_run(tmp_path / "run")).rule == "command-no-stage-yet"


def test_a_talk_longer_than_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=4))
    talk = object.__new__(Conversation)
    talk.messages, talk.tokenizer, talk.device = [], None, "cpu"
    talk.model = cast(Any, SimpleNamespace(config=config))
    monkeypatch.setattr("posttrain.data.chat_template.render_prompt", lambda *_: [1] * 5)
    assert fails(lambda: talk.reply("hello", print)).rule == "command-talk-too-long"


def test_hub(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert fails(lambda: plan.make(store, "mine", private=False, data=False, numbers=None)).rule == "hub-name"

    def model(number: int, policy: str) -> object:
        of, summary = Round(number, True, policy, {}, {}), cast(Any, SimpleNamespace(base_key=None))
        return plan._model(plan._Checked(store), "me/mine", of, summary, False)

    assert fails(lambda: model(1, "/the/base")).rule == "hub-base-model"
    assert fails(lambda: model(0, str(tmp_path / "gone"))).rule == "hub-no-policy"


@pytest.mark.parametrize("text", ["a,a\n1,2\n", 'prompt,x\n"a"b,2\n', "prompt,x\na\n"])
def test_csv(tmp_path: Path, text: str) -> None:
    (tmp_path / "in.csv").write_text(text)
    assert fails(lambda: read_prompts(PromptSet(path=str(tmp_path / "in.csv")))).rule == "data-csv"
    if text.startswith("a,a"):
        assert fails(lambda: open_rows(tmp_path / "in.csv")).rule == "data-csv"


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b", "level": "best"}\n')
    assert fails(lambda: read_preferences(PromptSet(path=str(path)))).rule == "data-level"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = PromptSet(dataset_name="nobody/no-such-set", split="train")
    assert fails(lambda: read_prompts(asked)).rule == "data-hub"
    rows = [{"id": "1", "columns": json.dumps({"answer": 1})}]
    assert fails(lambda: selection.matching(rows, {"anwser": 1})).rule == "data-where"
    assert fails(lambda: selection.matching(rows, {"answer": 2})).rule == "data-where"


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("in.jsonl", "in.csv", "in.parquet"):
        (tmp_path / name).touch()

    def refused(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refused)  # root may read everything
    for name in ("in.jsonl", "in.csv", "in.parquet"):
        assert fails(lambda name=name: read_prompts(PromptSet(path=str(tmp_path / name)))).rule == "data-unreadable"
        assert fails(lambda name=name: open_rows(tmp_path / name)).rule == "data-unreadable"


def test_a_word_list_of_gigabytes(tmp_path: Path) -> None:
    with (tmp_path / "words.txt").open("wb") as file:
        file.truncate(8 << 30)
    chain = filters.parse([{"use": "unsafe-words", "file": str(tmp_path / "words.txt")}])
    rows = pa.RecordBatch.from_pylist([{"prompt": "p", "completion": "a"}])
    assert fails(lambda: list(filters.run([rows], chain, FilterContext()))).rule == "data-file-size"


def test_filters(tmp_path: Path) -> None:
    assert fails(lambda: quality_model.load(tmp_path)).rule == "filter-no-classifier"
    assert fails(lambda: quality_model.fit(["a", "b"], [True, False])).rule == "filter-nothing-to-learn"


@pytest.mark.parametrize(
    ("entry", "rows", "rule"),
    [
        ({"use": "overlap"}, [{"prompt": "p", "completion": "a"}], "filter-no-evaluation"),
        ({"use": "best-of-k"}, [{"prompt": "p", "completion": "a", "score": "high"}], "filter-numbers"),
        (
            {"use": "best-of-k"},
            [{"prompt": p, "completion": "a", "score": 1.0} for p in "pqp"],
            "filter-not-grouped",
        ),
    ],
)
def test_rows_that_a_filter_cannot_read(entry: dict[str, Any], rows: list[dict[str, Any]], rule: str) -> None:
    batches = [pa.RecordBatch.from_pylist([row]) for row in rows]
    assert fails(lambda: list(filters.run(batches, filters.parse([entry]), FilterContext()))).rule == rule


def test_a_number_that_is_none() -> None:
    for text in ("a: !!int x", "a: !!float 1-2"):
        assert fails(lambda text=text: parse(text, Place("r.yaml", Path()))).rule == "recipe-number-form"
