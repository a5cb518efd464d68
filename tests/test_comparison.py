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
from posttrain.comparison import compare
from posttrain.errors import InputError
from posttrain.report import compare_page

LONGER = "def longer(prompts, completions):\n    return [float(len(one[-1]['content'])) for one in completions]\n"
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


def test_a_judge_that_prefers_a_place_prefers_nobody(run: Made, tmp_path: Path) -> None:
    (tmp_path / "places.py").write_text(FIRST_WINS)
    found = compare(f"{run.store.root}/round-0", str(run.store.root), judges=[str(tmp_path / "places.py")])
    assert found.win_rates["places"]["raw"]["value"] == 0.5


def test_the_page_shows_answers_as_text_and_loads_nothing(run: Made, longer: str) -> None:
    page = compare_page.html(compare(f"{run.store.root}/round-0", str(run.store.root), judges=[longer]))
    assert HOSTILE not in page and "&lt;script&gt;" in page
    assert "Where A is preferred most" in page
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
    reward_model = refused(f"{bare}/round-0", f"{bare}/round-0", "reward-model")
    assert reward_model == "command-compare-no-reward-model"
    monkeypatch.setattr(report_runs, "GREEDY", {"another": [("yes", 1.0)]})
    other = begun(tmp_path / "other").store.root
    assert refused(f"{root}/round-0", str(other), "reward-model") == "command-compare-no-common-prompt"
    monkeypatch.setitem(report_runs.CHECK, "weight", 0.5)
    third = begun(tmp_path / "third").store.root
    assert refused(f"{root}/round-0", str(third)) == "command-compare-other-rewards"
