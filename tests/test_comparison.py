"""Runs and rounds compared by what is in their folders. A model beside a run: tests/test_api.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import report_runs
from support.report_runs import HOSTILE, Made, begun, full_round
from typer.testing import CliRunner

from posttrain.cli import app
from posttrain.errors import DamagedError, InputError
from posttrain.inference.comparison import compare
from posttrain.report import compare_page

LONGER = "def longer(prompts, completions):\n    return [float(len(one[-1]['content'])) for one in completions]\n"
NINE_WINS = """
def nine(prompts, first, second, **columns):
    return [0.5 + 0.5 * (one[-1]["content"] == "nine") - 0.5 * (two[-1]["content"] == "nine")
            for one, two in zip(first, second)]

def ten(prompts, first, second, **columns):
    return [0.5] * len(first)
"""
FIRST_WINS = "def judge(prompts, first, second, **columns):\n    return [1.0] * len(first)\n"


@pytest.fixture
def run(tmp_path: Path) -> Made:
    made = begun(tmp_path / "run")
    full_round(made, 2, full_round(made, 1, "base-0", promoted=True), promoted=False)
    return made


@pytest.fixture
def longer(tmp_path: Path) -> str:
    (tmp_path / "longer.py").write_text(LONGER)
    return str(tmp_path / "longer.py")


def test_a_run_is_its_last_promoted_round_and_a_round_is_named_by_its_folder(run: Made, longer: str) -> None:
    root = run.store.root
    found = compare(f"{root}/round-0", str(root), judges=[longer])
    assert found.prompts == 5
    greedy = found.figures["greedy"]  # of the four that a function scores: right are lost, between, same; then gained
    assert (greedy["first"]["value"], greedy["second"]["value"], greedy["difference"]["n"]) == (0.75, 0.75, 4)
    assert compare(str(root), f"{root}/round-2", judges=[longer]).figures["greedy"]["difference"]["value"] == 0.0


def test_scores_of_a_reward_file_decide_who_wins_and_equal_answers_are_a_tie(run: Made, longer: str) -> None:
    found = compare(f"{run.store.root}/round-0", f"{run.store.root}/round-2", judges=[longer])
    assert found.win_rates["longer"]["raw"]["value"] == pytest.approx(0.4)  # "ten" is shorter than "nine"
    assert found.win_rates["longer"]["ties"] == 0.8
    (only,) = found.behind
    assert (only.first["prompt_id"], only.right, only.preferences) == ("lost", (1.0, 0.0), {"longer": 0.0})
    assert not found.ahead
    (other,) = compare(f"{run.store.root}/round-2", f"{run.store.root}/round-0", judges=[longer]).ahead
    assert (other.second["prompt_id"], other.right) == ("lost", (0.0, 1.0))


def test_the_functions_together_have_no_opinion_of_what_none_of_them_scores(run: Made) -> None:
    """The reward model of these runs is made up, so the judges are asked without one."""
    for one in run.rounds:
        one["stages"].pop("reward_model", None)
    run.write()
    found = compare(f"{run.store.root}/round-0", f"{run.store.root}/round-1")
    assert found.win_rates.keys() == {"rewards"}
    raw = found.win_rates["rewards"]["raw"]  # "gained" is won, "between" lost, two are equal, one nobody scores
    assert (raw["value"], raw["n"]) == (0.5, 4)
    assert [one.first["prompt_id"] for one in found.ahead] == ["gained"]
    assert [one.first["prompt_id"] for one in found.behind] == ["between"]


def test_a_judge_that_prefers_a_place_prefers_nobody_and_one_that_compares_prefers_a_side(
    run: Made, tmp_path: Path
) -> None:
    (tmp_path / "places.py").write_text(FIRST_WINS)
    (tmp_path / "texts.py").write_text(NINE_WINS)
    names = [str(tmp_path / "places.py"), f"{tmp_path}/texts.py:nine"]
    found = compare(f"{run.store.root}/round-0", f"{run.store.root}/round-2", judges=names)
    assert found.win_rates["places"]["raw"]["value"] == 0.5
    assert found.win_rates["texts.nine"]["raw"]["value"] == pytest.approx(0.4)  # "nine" was the first side's


def test_benchmarks_are_paired_by_question_where_they_were_asked_alike(run: Made, longer: str) -> None:
    def asked(number: int, scores: list[float | None], limit: int | None) -> None:
        run.rounds = run.rounds[:number]
        run.begin()
        run.evaluation(number, "base-0")
        texts = ["one", "same", "same", "two"]
        rows = [{"task": "apples", "text": text, "score": score} for text, score in zip(texts, scores, strict=True)]
        run.benchmark("apples", rows, {"task": "apples", "limit": limit})
        run.end("/models/base")

    asked(0, [1.0, 0.0, 1.0, None], 4)
    asked(1, [1.0, 1.0, 1.0, 1.0], 4)
    asked(2, [1.0, 1.0, 1.0, 1.0], 3)
    root = run.store.root
    apples = compare(f"{root}/round-0", f"{root}/round-1", judges=[longer]).benchmarks["apples"]
    assert apples["first"]["value"] == pytest.approx(2 / 3) and apples["second"]["value"] == 1.0
    assert apples["difference"]["n"] == 3  # the one without a score is left out
    assert not compare(f"{root}/round-0", f"{root}/round-2", judges=[longer]).benchmarks


def test_a_run_whose_table_was_cut_says_so(run: Made, longer: str) -> None:
    root = run.store.root
    table = root / "artifacts" / run.rounds[0]["stages"]["heldout"] / "heldout.parquet"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(DamagedError, match="gone or cut"):
        compare(f"{root}/round-0", str(root), judges=[longer])


def test_the_page_shows_answers_as_text_and_loads_nothing(run: Made, longer: str) -> None:
    page = compare_page.html(compare(f"{run.store.root}/round-0", str(run.store.root), judges=[longer]))
    assert HOSTILE not in page and "&lt;script&gt;" in page
    assert "Examples where A is preferred" in page
    assert not [word for word in ("src=", "href=", "url(") if word in page]


def test_the_command_prints_both_sides_and_writes_the_page(run: Made, longer: str, tmp_path: Path) -> None:
    sides = [f"{run.store.root}/round-0", str(run.store.root)]
    told = ["compare", *sides, "--judge", longer, "--out", str(tmp_path / "page.html")]
    shown = CliRunner().invoke(app, told, catch_exceptions=False)
    lines: dict[str, list[str]] = {line.split()[0]: line.split() for line in shown.output.splitlines() if line.strip()}
    assert lines["greedy"][1:] == ["0.750", "0.750", "+0.000", "[-0.750,", "+0.750]"]
    assert (tmp_path / "page.html").is_file()
    figures: dict[str, Any] = json.loads(CliRunner().invoke(app, [*told, "--json"], catch_exceptions=False).output)
    assert figures["figures"]["length"]["first"]["value"] == 2.5 and figures["win_rates"].keys() == {"longer"}


def test_what_cannot_be_compared_is_refused(run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = run.store.root
    bare = begun(tmp_path / "bare").store.root

    def refused(first: str, second: str, *judges: str) -> str | None:
        with pytest.raises(InputError) as said:
            compare(first, second, judges=judges)
        return said.value.rule

    assert refused(f"{root}/round-0", f"{root}/round-3") == "command-compare-no-answers"
    assert refused(f"{bare}/round-0", f"{bare}/round-0", "reward-model") == "command-compare-no-reward-model"
    assert refused(f"{root}/round-0", str(root), "rubric.md") == "command-compare-judge"
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "longer.py").write_text(LONGER)
    twice = [f"{tmp_path}/{folder}/longer.py" for folder in ("one", "other")]
    assert refused(f"{root}/round-0", str(root), *twice) == "command-compare-judge"
    monkeypatch.setattr(report_runs, "GREEDY", {"another": [("yes", 1.0)]})
    other = begun(tmp_path / "strangers").store.root
    assert refused(f"{root}/round-0", str(other), "reward-model") == "command-compare-no-common-prompt"
    monkeypatch.setitem(report_runs.CHECK, "weight", 0.5)
    third = begun(tmp_path / "third").store.root
    assert refused(f"{root}/round-0", str(third)) == "command-compare-unlike"
