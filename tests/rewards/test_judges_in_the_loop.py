"""Judges as rewards and in filters, as the loop has them: what decides a key, and what a stage reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.judges import FakeJudge, gives, judged, serving
from support.loop_runs import go

from posttrain import rewards
from posttrain.config import RewardEntry
from posttrain.data import tables
from posttrain.errors import EngineError, RecipeError, RewardError
from posttrain.job import Job
from posttrain.recipe.load import load
from posttrain.recipe.recipe import Recipe
from posttrain.stages import filters, scores
from posttrain.storage.files import read_json
from posttrain.storage.store import Store


def judged_by(url: str, **keys: Any) -> str:
    judge = {"url": url, "model": "big", **keys}
    entries = [{"use": "word-problems.py", "for": "scores"}, {"use": "readers.py", "for": "preferences"}]
    return "reward=" + json.dumps([*entries, {"use": "reward-model"}, {"use": "quality.md", "judge": judge}])


def keys(root: Path, *overrides: str) -> tuple[dict[str, str], list[str]]:
    _, said = go(root, 1, *overrides)
    return Store(root).read_run()["rounds"][1]["stages"], said


def test_where_a_judge_is_changes_no_key_and_which_it_is_does(tmp_path: Path) -> None:
    before, _ = keys(tmp_path / "run", judged_by("http://a/v1", timeout=5))
    assert keys(tmp_path / "run", judged_by("http://b/v1", at_once=3, patience=1, api_key_env="K")) == (before, [])
    after, said = keys(tmp_path / "run", judged_by("http://a/v1", temperature=0.5))
    assert after["scores"] != before["scores"] and after["answers_samples"] == before["answers_samples"]
    assert "scores of round 1 runs again" in " ".join(said) and "temperature 0.0 → 0.5" in " ".join(said)


def test_a_filters_judge_is_in_its_key_and_its_address_is_not(tmp_path: Path) -> None:
    def filters_by(url: str, model: str) -> str:
        return "filters=" + json.dumps([{"use": "quality", "judge": {"url": url, "model": model}}])

    before, _ = keys(tmp_path / "run", filters_by("http://a/v1", "big"))
    assert keys(tmp_path / "run", filters_by("http://b/v1", "big"))[0] == before
    after, said = keys(tmp_path / "run", filters_by("http://a/v1", "small"))
    assert after["filters"] != before["filters"] and after["scores"] == before["scores"]
    assert 'judge.model "big" → "small"' in " ".join(said)


def test_another_text_of_a_rubric_runs_its_filter_again(tmp_path: Path) -> None:
    rubric = tmp_path / "mine.md"
    rubric.write_text("---\nlowest: 1\nhighest: 3\n---\nJudge.")
    entry = {"use": "judge", "rubric": str(rubric), "judge": {"url": "http://a/v1", "model": "big"}}
    before, _ = keys(tmp_path / "run", "filters=" + json.dumps([entry]))
    rubric.write_text("---\nlowest: 1\nhighest: 3\n---\nJudge sternly.")
    after, said = keys(tmp_path / "run", "filters=" + json.dumps([entry]))
    assert after["filters"] != before["filters"]
    assert "the content of filters.0.mine.md changed" in " ".join(said)


def test_the_watch_does_not_take_a_judge_with_a_rubric_for_a_function(tmp_path: Path) -> None:
    go(tmp_path / "run", 1, judged_by("http://a/v1"), "watch={}")
    watch = read_json(tmp_path / "run" / "round-1" / "watch" / "artifact.json")
    assert [judge["use"] for judge in watch["config"]["judges"]] == ["held-out-reward-model", "word-problems.py"]
    assert "http" not in json.dumps(watch["config"])


# The stages themselves.

ANSWERS = ["four", "two", ":", "five5"]


@pytest.fixture
def served() -> Iterator[tuple[FakeJudge, str]]:
    fake = FakeJudge(lambda question: gives(min(len(judged(question)), 5))(question))
    with serving(fake) as url:
        yield fake, url


def samples(folder: Path) -> Path:
    folder.mkdir()
    rows = [
        {
            "prompt_id": "p",
            "sample_index": index,
            "prompt": [{"role": "user", "content": "How many?"}],
            "completion": [{"role": "assistant", "content": text}],
            "n_tokens": 1,
            "finish": "stop",
            "columns": "{}",
        }
        for index, text in enumerate(ANSWERS)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=tables.ANSWERS), folder / "answers.parquet")
    return folder


def scoring(tmp_path: Path, url: str) -> Job:
    entry = RewardEntry.model_validate(
        {"use": "quality.md", "judge": {"url": url, "model": "big", "patience": 0.3, "attempts": 1, "at_once": 1}}
    )
    (tmp_path / "out").mkdir(exist_ok=True)
    return Job(
        config={"rewards": [entry.model_dump(mode="json", by_alias=True)]},
        inputs={"answers": tmp_path / "samples"},
        out=tmp_path / "out",
        scratch=tmp_path / "scratch",
        seed=0,
    )


def test_a_judges_score_stands_beside_the_other_rewards(tmp_path: Path, served: tuple[FakeJudge, str]) -> None:
    samples(tmp_path / "samples")
    metrics = scores.run(scoring(tmp_path, served[1]))
    table = pq.read_table(tmp_path / "out" / "scored.parquet")
    assert [json.loads(text) for text in table["rewards"].to_pylist()] == [
        {"quality": value} for value in (0.75, 0.5, None, 1.0)
    ]
    assert table["score"].to_pylist() == [0.75, 0.5, None, 1.0]
    assert (metrics["unscored"], metrics["rewards"]) == (1, {"quality": 0.75})
    assert metrics["judges"] == {"quality": {"texts": 4, "no_score": 1, "asked_again": 0, "resent": 0}}


def test_a_stage_whose_judge_goes_away_goes_on_where_it_was(tmp_path: Path, served: tuple[FakeJudge, str]) -> None:
    fake, url = served
    samples(tmp_path / "samples")
    fake.fails_after = 2
    with pytest.raises(EngineError, match="big at http"):
        scores.run(scoring(tmp_path, url))
    fake.fails_after, before = None, len(fake.bodies)
    metrics = scores.run(scoring(tmp_path, url))
    assert len(fake.bodies) - before == 1  # two were judged, one says nothing
    assert metrics["judges"]["quality"]["texts"] == 4


def test_the_filters_stage_counts_what_the_judge_did(tmp_path: Path, served: tuple[FakeJudge, str]) -> None:
    samples(tmp_path / "samples")
    scores.run(scoring(tmp_path, served[1]))
    (tmp_path / "prompts").mkdir()
    for name in ("dev", "heldout"):
        nothing = pa.table({"prompt": pa.array([], tables.ANSWERS.field("prompt").type)})
        pq.write_table(nothing, tmp_path / "prompts" / f"{name}.parquet")
    (tmp_path / "filtered").mkdir()

    def job(minimum: int) -> Job:
        key = {"url": served[1], "model": "big", "patience": 0.3, "attempts": 1}
        entry = {"use": "quality", "share": 0.25, "take": "both", "minimum": minimum, "judge": key}
        inputs = {"scored": tmp_path / "out", "prompts": tmp_path / "prompts"}
        return Job({"filters": [entry]}, inputs, tmp_path / "filtered", tmp_path / f"scratch-{minimum}", 0)

    metrics = filters.run(job(5))
    kept = pq.read_table(tmp_path / "filtered" / "kept.parquet")
    assert [row[0]["content"] for row in kept["completion"].to_pylist()] == ["five5"]
    assert metrics["dropped"] == {"quality: below the top share": 2, "quality: no score": 1}
    assert metrics["judges"] == {"quality": {"texts": 1, "no_score": 0, "asked_again": 0, "resent": 0}}
    with pytest.raises(RecipeError, match=r"minimum is 6, and quality gives 1 to 5 \[filter-minimum\]"):
        filters.run(job(6))


def test_a_key_that_is_not_set_is_told_before_anything_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    recipe: Recipe = load("quickstart", [judged_by("http://127.0.0.1:9/v1", api_key_env="JUDGE_KEY")])
    with pytest.raises(RewardError, match="JUDGE_KEY is not set"):
        rewards.load(recipe.reward[-1]).probe([])
