"""Topics, tags, difficulty and pass rates as columns, and the shares that SFT's rows have by them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.judges import FakeJudge, asked_form, judged, serving
from support.loop_runs import go

from posttrain import shipped
from posttrain.config import Balance, Sft
from posttrain.data.tables import ANSWERS, MESSAGES
from posttrain.errors import DataError, RecipeError, RewardError
from posttrain.evaluation.topics import topics
from posttrain.job import Job
from posttrain.recipe.load import load
from posttrain.rewards import prompt_stats
from posttrain.stages import annotate, run_stage, scores
from posttrain.storage.files import read_json
from posttrain.training.balancing import balanced

SUMS = [f"Mia has {n} apples and buys {n + 1} apples. How many apples?" for n in range(12)]
LETTERS = [f"Write a letter to uncle {name} about the kite." for name in ("Tom", "Jim", "Max", "Ben") * 3]


class TestTopics:
    def test_texts_of_one_kind_have_one_topic_named_by_its_words(self) -> None:
        found = topics([*SUMS, *LETTERS], 2, 0)
        assert len(set(found[:12])) == len(set(found[12:])) == 1 and found[0] != found[12]
        assert set(found[0].split("-")) <= {"mia", "has", "apples", "and", "buys", "how", "many"}

    def test_the_same_texts_have_the_same_topics(self) -> None:
        assert topics([*SUMS, *LETTERS], 3, 5) == topics([*SUMS, *LETTERS], 3, 5)

    def test_a_text_without_any_shared_word_is_other(self) -> None:
        assert topics([*SUMS, *LETTERS, "Zweiundvierzig!"], 2, 0)[-1] == "other"

    @pytest.mark.parametrize("texts", [[], ["1 2 3"], ["one"] * 3, ["alone", "single", "solitary"]])
    def test_too_few_to_tell_apart(self, texts: list[str]) -> None:
        with pytest.raises(DataError, match=r"cannot be clustered into 5 topics.*\[data-topics\]"):
            topics(texts, 5, 0)


def prompts(folder: Path) -> Path:
    folder.mkdir()
    rows = [{"id": f"p{n}", "prompt": [{"role": "user", "content": text}]} for n, text in enumerate([*SUMS, *LETTERS])]
    schema = pa.schema([("id", pa.string()), ("prompt", MESSAGES)])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "train.parquet")
    return folder


def samples(folder: Path, ids: dict[str, int]) -> Path:
    folder.mkdir()
    rows = [
        {"prompt_id": name, "sample_index": k, "columns": "{}"} for name, count in ids.items() for k in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows, ANSWERS), folder / "answers.parquet")
    return folder


def test_what_is_found_out_of_the_prompts_that_were_sampled(tmp_path: Path) -> None:
    def says(question: str) -> str:
        text = judged(question, "PROMPT")
        letter = "letter" in text
        if asked_form(question).startswith("Tags"):
            return asked_form(question) + ("letter; kite" if letter else "sum")
        return asked_form(question) + ("9" if "Tom" in text else "2" if letter else "1")

    fake = FakeJudge(says)
    (tmp_path / "out").mkdir()
    with serving(fake) as url:
        judge = {"url": url, "model": "big", "attempts": 1}
        section = {
            "topics": 2,
            "tags": {"rubric": "tags.md", "judge": judge},
            "difficulty": {"rubric": "difficulty.md", "judge": judge},
        }
        inputs = {
            "prompts": prompts(tmp_path / "prompts"),
            "answers": samples(tmp_path / "samples", {"p0": 2, "p12": 2, "p13": 2}),
        }
        metrics = annotate.run(Job({"annotate": section}, inputs, tmp_path / "out", tmp_path / "scratch", 0))
    rows = pq.read_table(tmp_path / "out" / "annotations.parquet").to_pylist()
    assert [row["prompt_id"] for row in rows] == ["p0", "p12", "p13"]
    assert rows[1]["topic"] == rows[2]["topic"] != rows[0]["topic"]
    assert [row["tags"] for row in rows] == [["sum"], ["letter", "kite"], ["letter", "kite"]]
    assert [row["intentions"] for row in rows] == [1, 2, 2]
    assert [row["difficulty"] for row in rows] == [1, None, 2]  # 9 is not on the scale
    assert metrics["intentions"] == {"1": 1, "2": 2}
    assert metrics["judges"]["difficulty"] == {"texts": 3, "no_score": 1, "asked_again": 0, "resent": 0}
    assert not any(
        "ANSWER BEGINS" in body["messages"][0]["content"] for body in fake.bodies if "2 + 3" not in str(body)
    )


def test_pass_rates_are_of_the_samples_that_have_a_score() -> None:
    rates = prompt_stats.pass_rates(["a", "a", "a", "b", "c"], [1.0, 0.4, None, None, 0.5])
    assert rates == {"a": 0.5, "b": None, "c": 1.0}
    assert [prompt_stats.level(rate) for rate in (0, 0.3, 0.34, 0.66, 0.67, 1, None)] == [
        *("hard", "hard", "medium", "medium", "easy", "easy", None)
    ]


def test_scores_writes_the_columns_beside_the_samples(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(
        "def right(prompts, completions):\n    return [float(len(one[0]['content']) > 1) for one in completions]\n"
    )
    (tmp_path / "samples").mkdir()
    rows = [
        {
            "prompt_id": prompt,
            "prompt": [{"role": "user", "content": prompt}],
            "sample_index": k,
            "columns": "{}",
            "completion": [{"role": "assistant", "content": text}],
        }
        for prompt, texts in (("a", ["xx", "y", "xx", "y"]), ("b", ["y", "y"]))
        for k, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows, ANSWERS), tmp_path / "samples" / "answers.parquet")
    (tmp_path / "known").mkdir()
    found = [{"prompt_id": "a", "topic": "sums"}]
    pq.write_table(pa.Table.from_pylist(found, annotate.SCHEMA), tmp_path / "known" / "annotations.parquet")
    (tmp_path / "out").mkdir()
    scores.run(
        Job(
            {"rewards": [{"use": str(tmp_path / "right.py")}], "columns": ["pass_rate", "topic"]},
            {"answers": tmp_path / "samples", "annotations": tmp_path / "known"},
            tmp_path / "out",
            tmp_path / "scratch",
            0,
        )
    )
    table = pq.read_table(tmp_path / "out" / "scored.parquet")
    assert table["pass_rate"].to_pylist() == [0.5] * 4 + [0.0] * 2
    assert table["topic"].to_pylist() == ["sums"] * 4 + [None] * 2


def rows(**by_value: int) -> list[dict[str, Any]]:
    return [
        {"prompt_id": f"{value}{n}", "sample_index": 0, "columns": json.dumps({"source": value})}
        for value, count in by_value.items()
        for n in range(count)
    ]


def counted(given: list[dict[str, Any]], **keys: Any) -> dict[str, int]:
    chosen, told = balanced(given, Balance(by="source", **keys), _draw)
    out: dict[str, int] = {}
    for row in chosen:
        value = json.loads(row["columns"])["source"]
        out[value] = out.get(value, 0) + 1
    assert {value: counts["out"] for value, counts in told.items() if counts["out"]} == out
    assert sum(counts["in"] for counts in told.values()) == len(given)
    return out


def _draw(row: Any) -> float:
    return zlib.crc32(row["prompt_id"].encode()) / 2**32


class TestBalance:
    def test_equal_shares_take_from_the_many_and_repeat_the_few(self) -> None:
        assert counted(rows(a=60, b=30, c=10)) == {"a": 33, "b": 33, "c": 33}

    def test_shares_by_name_and_the_rest_in_proportion(self) -> None:
        assert counted(rows(a=60, b=30, c=10), shares={"c": 0.4}, max_repeats=9) == {"a": 40, "b": 20, "c": 40}

    def test_no_row_comes_oftener_than_it_may(self) -> None:
        assert counted(rows(a=60, b=30, c=10), shares={"c": 0.4}, max_repeats=2) == {"a": 40, "b": 20, "c": 20}

    def test_a_value_without_a_share_of_what_is_all_given_goes(self) -> None:
        assert counted(rows(a=20, b=20, c=20), shares={"a": 0.5, "b": 0.5}) == {"a": 30, "b": 30}

    def test_a_share_of_what_does_not_occur_is_divided(self) -> None:
        assert counted(rows(a=30, b=10), shares={"a": 0.25, "b": 0.25, "z": 0.5}) == {"a": 20, "b": 20}

    def test_every_row_comes_as_often_as_the_next_or_once_more(self) -> None:
        given = rows(a=70, b=30)
        chosen, _ = balanced(given, Balance(by="source", shares={"b": 0.75}), _draw)
        copies = [sum(one is row for one in chosen) for row in given]
        assert set(copies[:70]) == {0, 1} and set(copies[70:]) == {2, 3}
        assert [row for row, count in zip(given, copies, strict=True) for _ in range(count)] == chosen

    def test_a_column_of_the_table_goes_before_one_of_the_prompts(self) -> None:
        given = [{**row, "source": None if n else "x"} for n, row in enumerate(rows(a=4))]
        _, told = balanced(given, Balance(by="source", shares={"null": 0.5}), _draw)
        assert told == {"null": {"in": 3, "out": 2}, "x": {"in": 1, "out": 2}}

    def test_pass_rates_are_words(self) -> None:
        given = [{**row, "pass_rate": rate} for row, rate in zip(rows(a=4), (0.0, 0.5, 0.9, None), strict=True)]
        assert list(balanced(given, Balance(by="pass_rate"), _draw)[1]) == ["easy", "hard", "medium", "null"]

    def test_numbers_are_named_as_they_are_written(self) -> None:
        assert Balance.model_validate({"by": "difficulty", "shares": {1: 0.5, None: 0.1}}).shares == {
            "1": 0.5,
            "null": 0.1,
        }

    def test_an_unknown_column_lists_the_near_one(self) -> None:
        with pytest.raises(DataError, match="no row has a column 'sources', did you mean 'source'"):
            balanced(rows(a=3), Balance(by="sources"), _draw)


class TestInTheLoop:
    def test_off_it_is_in_no_key(self) -> None:
        assert "balance" not in Sft().in_key()["mix"]
        assert Sft.model_validate({"mix": {"balance": {"by": "source"}}}).in_key()["mix"]["balance"]["by"] == "source"

    def test_the_stages_and_what_they_read(self, tmp_path: Path) -> None:
        ran, _ = go(tmp_path / "run", 2, "annotate.topics=4", "sft.mix.balance={by: topic}")
        assert ran.count("annotate") == 2
        scored = read_json(tmp_path / "run" / "round-2" / "scores" / "artifact.json")
        assert {"answers", "annotations"} <= set(scored["input_keys"])
        assert scored["config"]["columns"] == ["pass_rate", "topic"]

    def test_pass_rates_alone_need_no_stage(self, tmp_path: Path) -> None:
        ran, _ = go(tmp_path / "run", 1, "annotate={}", "sft.mix.balance={by: pass_rate}")
        assert "annotate" not in ran

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["sft.mix.balance={by: topic}"], "no annotation gives the column topic"),
            (["annotate.topics=4", "sft.mix.balance={by: difficulty}"], "no annotation gives the column difficulty"),
            (["sft.mix.balance={by: tags}"], "a prompt has several tags"),
            (["sft.mix.balance={by: x, shares: {a: 0.7, b: 0.4}}"], "add up to 1 at most"),
            (["sft.mix.balance={by: x, shares: {a: 0.0}}"], "all shares are 0"),
            (["annotate={pass_rate: false}"], "no annotation is selected"),
            (["annotate.topics=1"], "greater than or equal to 2"),
            (["annotate.tags={rubric: tags.md}"], "'judge' is missing"),
        ],
    )
    def test_what_cannot_be_is_told(self, overrides: list[str], says: str) -> None:
        with pytest.raises(RecipeError) as e:
            load("quickstart", overrides)
        assert says in str(e.value)

    @pytest.mark.parametrize(("what", "rubric"), [("tags", "quality.md"), ("difficulty", "tags.md")])
    def test_a_rubric_that_asks_for_something_else(self, tmp_path: Path, what: str, rubric: str) -> None:
        judge = "judge: {url: 'http://a/v1', model: b}"
        with pytest.raises(RewardError, match="this rubric asks for"):
            go(tmp_path / "run", 1, f"annotate.{what}={{rubric: {rubric}, {judge}}}")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["topic", "source"])
def test_sft_learns_from_the_balanced_rows(tmp_path: Path, by: str) -> None:
    """By a column of the table as by one of the prompts' own: 6 rows of one kind and 2 of another become 4 and 4."""
    (tmp_path / "kept").mkdir()
    kinds = ["sum"] * 6 + ["letter"] * 2
    found = [
        {
            "prompt_id": str(n),
            "sample_index": 0,
            "prompt": [{"role": "user", "content": f"{n} + 1?"}],
            "completion": [{"role": "assistant", "content": f"{n + 1}"}],
            "columns": json.dumps({"source": kind}),
            "score": 1.0,
            **({"topic": kind} if by == "topic" else {}),
        }
        for n, kind in enumerate(kinds)
    ]
    pq.write_table(pa.Table.from_pylist(found), tmp_path / "kept" / "kept.parquet")
    keys = {"per_device_train_batch_size": 4, "bf16": False, "max_steps": 1}
    section = Sft.model_validate({**keys, "mix": {"balance": {"by": by}}})
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    config = {"sft": section.model_dump(), "model": {"dtype": "float32", "lora": None}}
    inputs = {"model": shipped.locate("data", "tiny-base"), "kept": tmp_path / "kept"}
    metrics = run_stage("sft", Job(config, inputs, tmp_path / "out", tmp_path / "scratch", 0))
    assert metrics["balance"] == {"letter": {"in": 2, "out": 4}, "sum": {"in": 6, "out": 4}}
    assert (metrics["rows"], metrics["mix"]) == (8, 8)
