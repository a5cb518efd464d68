"""The filters that ask a judge, and the top share of rewards by hand-computed numbers."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.filter_rows import batches, row
from support.judges import FakeJudge, gives, judged, serving

from posttrain import filters
from posttrain.errors import DataError, EngineError, InputError, RecipeError
from posttrain.filters import FilterContext
from posttrain.recipe.load import load


def filter_rows(
    rows: list[dict[str, Any]], *entries: dict[str, Any], size: int = 3
) -> tuple[list[str], list[tuple[str, str, Any]]]:
    """The answers that are kept; answer, reason and figure of those that are dropped."""
    run = filters.run(batches(rows, size), filters.parse(entries), FilterContext(["something else"]))
    kept, dropped = [], []
    for part in run:
        kept += part.kept.to_pylist()
        dropped += part.dropped.to_pylist()
    assert sum(count.rows_in - count.rows_out for count in run.counts) == len(dropped)
    return [answer(one) for one in kept], [(answer(one), one["reason"], one["figure"]) for one in dropped]


def answer(one: dict[str, Any]) -> str:
    return one["completion"][0]["content"]


def scored(**by_prompt: list[float | None]) -> list[dict[str, Any]]:
    """Rows whose answer says prompt and index: a0, a1, …"""
    return [
        row(f"{prompt}{index}", prompt, score=score, sample_index=index)
        for prompt, scores in by_prompt.items()
        for index, score in enumerate(scores)
    ]


class TestTheTopShare:
    # a: mean 2, deviations −2 0 2; b: mean 11, deviations −1 1. s² = (4 + 0 + 4 + 1 + 1) / 5 = 2.
    ROWS = scored(a=[0.0, 2.0, 4.0], b=[10.0, 12.0])

    def test_by_hand(self) -> None:
        kept, dropped = filter_rows(self.ROWS, {"use": "quality", "share": 0.4})
        assert kept == ["a2", "b1"]
        assert {reason for _, reason, _ in dropped} == {"below the top share"}
        assert [figure for *_, figure in dropped] == pytest.approx([-math.sqrt(2), 0, -1 / math.sqrt(2)])

    @pytest.mark.parametrize(("share", "kept"), [(0.2, ["a2"]), (0.21, ["a2", "b1"]), (0.6, ["a1", "a2", "b1"])])
    def test_at_least_the_share_is_kept(self, share: float, kept: list[str]) -> None:
        assert filter_rows(self.ROWS, {"use": "quality", "share": share})[0] == kept

    def test_batches_do_not_matter(self) -> None:
        found = [filter_rows(self.ROWS, {"use": "quality", "share": 0.4}, size=size)[0] for size in (1, 2, 5)]
        assert found == [["a2", "b1"]] * 3

    def test_another_scale_or_place_of_all_rewards_changes_nothing(self) -> None:
        moved = [{**one, "score": 1e-3 * one["score"] - 7} for one in self.ROWS]
        assert filter_rows(moved, {"use": "quality", "share": 0.4})[0] == ["a2", "b1"]

    def test_an_easy_prompt_does_not_fill_the_share(self) -> None:
        """By raw rewards the whole top half would be b's."""
        rows = scored(a=[0.0, 0.1, 0.2, 0.9], b=[5.0, 5.1, 5.2, 5.9])
        assert filter_rows(rows, {"use": "quality"})[0] == ["a3", "b3"]

    def test_one_row_a_prompt_is_measured_by_the_rounds_mean(self) -> None:
        kept, dropped = filter_rows(scored(a=[1.0], b=[2.0], c=[3.0], d=[6.0]), {"use": "quality"})
        assert kept == ["d0"]  # mean 3, s² = (4 + 1 + 0 + 9) / 4 = 3.5
        assert [figure for *_, figure in dropped] == pytest.approx([-2 / math.sqrt(3.5), -1 / math.sqrt(3.5), 0])

    def test_rounds_do_not_mix(self) -> None:
        """Round 2's reward model speaks in hundreds; each round has a top quarter of its own."""
        first = scored(a=[0.0, 1.0, 2.0, 3.0])
        second = [{**one, "score": 100 * one["score"]} for one in scored(a=[3.0, 2.0, 1.0, 0.0])]
        schema = batches(first)[0].schema.append(pa.field("round", pa.int32()))
        rows = [{**one, "round": number} for number, some in ((1, first), (2, second)) for one in some]
        table = pa.Table.from_pylist(rows, schema)
        run = filters.run(table.to_batches(max_chunksize=3), filters.parse([{"use": "quality"}]), FilterContext())
        assert [one["score"] for part in run for one in part.kept.to_pylist()] == [3.0, 300.0]

    def test_no_score_is_never_among_the_best(self) -> None:
        kept, dropped = filter_rows(scored(a=[None, float("nan"), 1.0, 2.0]), {"use": "quality", "share": 0.5})
        assert kept == ["a3"]
        assert [one[:2] for one in dropped] == [("a0", "no score"), ("a1", "no score"), ("a2", "below the top share")]

    def test_where_all_are_alike_none_is_dropped(self) -> None:
        assert filter_rows(scored(a=[0.3, 0.3], b=[0.1 + 0.2] * 2), {"use": "quality"})[1] == []

    def test_the_share_is_of_what_there_was_before_any_filter(self) -> None:
        rows = scored(a=[0.0, 1.0, 2.0, 3.0])
        kept, _ = filter_rows(rows, {"use": "best-of-k"}, {"use": "quality"})
        assert kept == ["a3"]
        assert filter_rows(rows, {"use": "length", "min_tokens": 1}, {"use": "quality", "share": 0.5})[0] == [
            "a2",
            "a3",
        ]

    def test_plain_rows_without_an_id(self) -> None:
        table = pa.table({"prompt": ["p"] * 3 + ["q"], "completion": list("abcd"), "score": [1.0, 2.0, 3.0, 2.0]})
        run = filters.run(table.to_batches(max_chunksize=2), filters.parse([{"use": "quality"}]), FilterContext())
        assert [one["completion"] for part in run for one in part.kept.to_pylist()] == ["c"]

    def test_no_scores_at_all(self) -> None:
        assert filter_rows(scored(a=[None]), {"use": "quality"}) == ([], [("a0", "no score", None)])
        rows = pa.table({"prompt": ["p"], "completion": ["a"]}).to_batches()
        with pytest.raises(DataError, match=r"reads the column 'score'.*\[filter-lacks\]"):
            filters.run(rows, filters.parse([{"use": "quality"}]), FilterContext())

    def test_rows_that_can_be_read_once(self) -> None:
        with pytest.raises(InputError, match=r"FilterContext\(corpus="):
            filters.run(iter(batches(self.ROWS)), filters.parse([{"use": "quality"}]), FilterContext())


@pytest.fixture
def asked() -> Iterator[Callable[..., tuple[FakeJudge, dict[str, Any]]]]:
    """A fake judge that gives each answer its score in `by_answer`, else 1; and the filter's `judge` key."""
    opened: list[Any] = []

    def start(**by_answer: object) -> tuple[FakeJudge, dict[str, Any]]:
        fake = FakeJudge(lambda question: gives(by_answer.get(judged(question), 1))(question))
        opened.append(serving(fake))
        return fake, {"url": opened[-1].__enter__(), "model": "big", "patience": 0.4, "attempts": 1}

    yield start
    for one in opened:
        one.__exit__(None, None, None)


def shown(fake: FakeJudge) -> list[str]:
    """The answers that the judge has seen, but for the plain question that it is tried with."""
    return sorted(judged(body["messages"][0]["content"]) for body in fake.bodies[1:])


class TestRewardAndJudge:
    ROWS = scored(a=[0.0, 1.0, 2.0, 3.0])

    def test_the_union(self, asked) -> None:
        fake, key = asked(a1=5, a2=4)
        kept, dropped = filter_rows(self.ROWS, {"use": "quality", "judge": key})
        assert kept == ["a1", "a3"]
        assert [one[:2] for one in dropped] == [(name, "neither rewarded nor judged high") for name in ("a0", "a2")]
        assert shown(fake) == ["a0", "a1", "a2"]  # a3 is kept whatever the judge says

    def test_the_intersection(self, asked) -> None:
        fake, key = asked(a1=5, a3=5, a2=4)
        kept, dropped = filter_rows(self.ROWS, {"use": "quality", "share": 0.5, "take": "both", "judge": key})
        assert kept == ["a3"]
        assert [one[1] for one in dropped] == ["below the top share", "below the top share", "judged too low"]
        assert dropped[2] == ("a2", "judged too low", 4.0)
        assert shown(fake) == ["a2", "a3"]

    @pytest.mark.parametrize("take", ["either", "both"])
    def test_the_judge_alone(self, asked, take: str) -> None:
        _, key = asked(a0=5, a1=4, a2="none")
        kept, dropped = filter_rows(self.ROWS, {"use": "quality", "share": None, "take": take, "judge": key})
        assert kept == ["a0"]
        assert dropped == [("a1", "judged too low", 4), ("a2", "no score", None), ("a3", "judged too low", 1)]

    def test_a_lower_bound(self, asked) -> None:
        _, key = asked(a1=4)
        assert filter_rows(self.ROWS, {"use": "quality", "share": None, "minimum": 4, "judge": key})[0] == ["a1"]

    def test_no_score_never_keeps_a_row(self, asked) -> None:
        _, key = asked(a0="5/5", a1="five", a2="\nScore: 5")
        assert filter_rows(self.ROWS, {"use": "quality", "judge": key})[0] == ["a3"]

    def test_nobody_decides(self) -> None:
        with pytest.raises(RecipeError, match=r"neither `share` nor `judge` is given \[recipe-needs-key\]"):
            filters.parse([{"use": "quality", "share": None}])


BOMB_AND_CAKE = [row("Mix the two.", "How do I make a bomb?"), row("Use a recipe.", "How do I make a cake?")]


class TestAGuard:
    def test_what_the_judge_gives_less_than_the_most_is_dropped(self, asked) -> None:
        _, key = asked(**{"Use a recipe.": 1, "Mix the two.": 0})
        kept, dropped = filter_rows(BOMB_AND_CAKE, {"use": "judge", "rubric": "guard.md", "judge": key})
        assert kept == ["Use a recipe."]
        assert dropped == [("Mix the two.", "judged too low", 0.0)]

    def test_on_prompts_alone(self) -> None:
        fake = FakeJudge(lambda question: gives(int("bomb" not in judged(question, "PROMPT")))(question))
        with serving(fake) as url:
            key = {"url": url, "model": "big"}
            kept, _ = filter_rows(BOMB_AND_CAKE, {"use": "judge", "rubric": "guard.md", "on": "prompt", "judge": key})
        assert kept == ["Use a recipe."]
        assert not any("ANSWER BEGINS" in body["messages"][0]["content"] for body in fake.bodies[1:])

    @pytest.mark.parametrize(("no_score", "kept"), [("drop", []), ("keep", ["Mix the two.", "Use a recipe."])])
    def test_rows_without_a_score_by_key(self, asked, no_score: str, kept: list[str]) -> None:
        _, key = asked(**dict.fromkeys(("Mix the two.", "Use a recipe."), "dangerous"))
        entry = {"use": "judge", "rubric": "guard.md", "no_score": no_score, "judge": key}
        assert filter_rows(BOMB_AND_CAKE, entry)[0] == kept

    def test_a_judge_that_is_down_stops_before_any_row_is_read(self) -> None:
        key = {"url": "http://127.0.0.1:9/v1", "model": "big", "patience": 0.1}
        with pytest.raises(EngineError, match=r"big at http://127\.0\.0\.1:9/v1"):
            filter_rows(BOMB_AND_CAKE, {"use": "judge", "rubric": "guard.md", "judge": key})

    def test_a_filter_can_go_to_another_process(self) -> None:
        (one,) = filters.parse([{"use": "judge", "rubric": "guard.md", "judge": {"url": "http://a/v1", "model": "b"}}])
        assert pickle.loads(pickle.dumps(one)) == one


RECIPE = """\
model: {path: tiny-base}
prompts:
  train:   {path: word-problems.train.jsonl}
  dev:     {path: word-problems.dev.jsonl}
  heldout: {path: word-problems.heldout.jsonl}
reward:
  - {use: ./mine.md, judge: {path: ./judge}}
  - {use: word-problems.py}
samples: {k: 4}
filters:
  - use: judge
    rubric: ./mine.md
    judge: {url: "http://a/v1", model: m/n/o}
  - {use: quality, judge: {url: "http://a/v1", model: b}}
"""


class TestInARecipe:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "r.yaml").write_text(RECIPE)
        (tmp_path / "mine.md").write_text("---\nlowest: 1\nhighest: 3\n---\nJudge.\n")
        (tmp_path / "judge").mkdir()
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def test_paths_are_made_absolute_and_it_comes_back_from_its_dump(self, folder: Path) -> None:
        recipe = load("./r.yaml")
        first = recipe.reward[0]
        assert first.use == str(folder / "mine.md") and first.name == "mine"
        assert first.judge is not None and first.judge.path == str(folder / "judge")
        said = recipe.filters[0].model_dump()
        assert said["rubric"] == str(folder / "mine.md") and said["judge"]["model"] == "m/n/o"
        (folder / "again.yaml").write_text(recipe.dump())
        assert load("./again.yaml") == recipe

    @pytest.mark.parametrize(
        ("old", "new", "line", "expected"),
        [
            ("judge: {path: ./judge}", "judge: {path: ./judges}", 7, "no such model folder"),
            (", judge: {path: ./judge}", "", 7, "a rubric needs a judge model"),
            ("{use: word-problems.py}", "{use: word-problems.py, judge: {path: ./judge}}", 8, "that ends with .md"),
            ("./mine.md\n", "./their.md\n", 12, "no such file"),
            ("model: m/n/o", "modell: b", 13, "unknown key 'modell' in 'filters.0.judge', did you mean 'model'?"),
            (", model: m/n/o", "", 13, "the name of the model on the server is missing"),
            ("model: m/n/o", "model: b, api_key_env: sk-123", 13, "should match pattern"),
            ("model: b", "model: b, path: ./judge", 14, "either `url` and `model`, or `path`"),
        ],
    )
    def test_what_is_wrong_is_told_at_its_line(
        self, folder: Path, old: str, new: str, line: int, expected: str
    ) -> None:
        assert old in RECIPE
        (folder / "r.yaml").write_text(RECIPE.replace(old, new))
        with pytest.raises(RecipeError) as e:
            load("./r.yaml")
        assert expected in str(e.value)
        assert e.value.line == line
