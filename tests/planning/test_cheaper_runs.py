"""What runs that cost less say of a plan."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.forecast_runs import PROMPTS, REWARD, a_round, a_run

from posttrain.errors import InputError
from posttrain.evaluation.forecast import Point, forecast
from posttrain.loop import play
from posttrain.pipeline.externals import external_inputs
from posttrain.planning import cheaper_runs
from posttrain.planning.cheaper_runs import Cheaper
from posttrain.planning.dry_run import DryRunner
from posttrain.recipe.load import load
from posttrain.report.forecasts import in_words, points
from posttrain.report.measure import Measure
from posttrain.report.reading import RunView

MEASURE = Measure.of("set-1", {"temperature": 1.0}, [REWARD], {"sums.py": "1"})


def test_a_plan_is_forecast_by_runs_that_cost_less() -> None:
    measured = points(a_run())

    def stage(role: str, completions: int) -> dict[str, Any]:
        return {"stage": role, "completions": completions}

    rounds = [
        {"round": number, "stages": [stage("answers_samples", 200), stage("answers_heldout", 50), stage("sft", 0)]}
        for number in range(4)
    ]
    rounds[0]["stages"] = rounds[0]["stages"][1:]
    rounds[1]["stages"].append(stage("benchmark_gsm8k", 1000))  # nothing learns from these
    found = cheaper_runs.of_plan(Cheaper([measured], [], PROMPTS), {"rounds": rounds}, 8)
    wanted = forecast([measured], [200.0, 400.0, 600.0], heldout_answers=8 * PROMPTS)
    assert wanted and [one["ci95"] for one in found] == [one["ci95"] for one in wanted]
    assert in_words(found).startswith("forecast of held-out pass@1: round 1: 0.")
    other = [Point(120.0 * at, 0.9 * (1 + 12 * at) ** -0.1, 0.2 + 0.05 * at) for at in range(7)]
    found = cheaper_runs.of_plan(Cheaper([measured], [other], PROMPTS), {"rounds": rounds}, 8)
    wanted = forecast([measured], [200.0, 400.0, 600.0], others=[other], heldout_answers=8 * PROMPTS)
    assert wanted and [one["ci95"] for one in found] == [one["ci95"] for one in wanted]


def test_runs_are_told_apart_by_their_starting_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cheaper_runs, "open_run", lambda folder: a_run())
    measured = points(a_run())
    twice = ["runs/half", "runs/../runs/half"]  # which counts once
    assert cheaper_runs.read(twice, "base-1", MEASURE) == Cheaper([measured], [], PROMPTS)
    with pytest.raises(InputError, match=r"no run .* starts from the recipe's model.*\[forecast-other-model\]"):
        cheaper_runs.read(["runs/half"], "base-2", MEASURE)
    found = {"runs/half": a_run(), "runs/small": a_run(start="base-2")}
    monkeypatch.setattr(cheaper_runs, "open_run", lambda folder: found[folder])
    assert cheaper_runs.read(list(found), "base-1", MEASURE) == Cheaper([measured], [measured], PROMPTS)


def test_a_run_without_points_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"there is no run here.*\[command-no-run\]"):
        cheaper_runs.read([str(tmp_path)], "base-1", MEASURE)
    monkeypatch.setattr(cheaper_runs, "open_run", lambda folder: RunView(Path(folder), "mine", "", (a_round(0, 0.2),)))
    with pytest.raises(InputError, match=r"nothing to forecast from.*\[forecast-no-points\]"):
        cheaper_runs.read(["runs/half"], "base-1", MEASURE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": "set-2"}, "was asked other held-out prompts"),
        ({"files": {"sums.py": "2"}}, "score held-out answers by other versions or weights of sums"),
        ({"rewards": []}, "score held-out answers by sums and by no function"),
        ({"sampling": {"temperature": 0.5}}, "sample held-out answers with {'temperature': 1.0} and with"),
    ],
)
def test_a_run_that_measures_something_else_is_refused(
    change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cheaper_runs, "open_run", lambda folder: a_run())
    with pytest.raises(InputError, match=rf"{re.escape(said)}.*\[forecast-unlike\]"):
        cheaper_runs.read(["runs/half"], "base-1", replace(MEASURE, **change))


def test_the_measure_of_a_run_is_that_of_its_recipe() -> None:
    recipe = load("quickstart")
    external = external_inputs(recipe)
    planned = cheaper_runs.measure_of(recipe, external)
    assert planned.names() == "word-problems" and planned.sampling["temperature"] == recipe.evaluate.temperature
    runner = DryRunner()
    play(recipe, runner, 1)
    (scored,) = [one for one in runner.stages if one.role == "heldout" and not one.number]
    (asked,) = [one for one in runner.stages if one.role == "answers_heldout" and not one.number]
    files = {"word-problems.py": external.rewards["word-problems.py"], "notes.py": "another's"}
    made = Measure.of(planned.prompts, asked.config["answers"], scored.config["rewards"], files)
    assert made == planned
    alike = [{**one, "for": None} for one in scored.config["rewards"]]
    assert Measure.of(planned.prompts, asked.config["answers"], alike, files) == planned
    two = [REWARD, {**REWARD, "use": "lengths.py"}]
    assert Measure.of("", {}, two, {}) == Measure.of("", {}, two[::-1], {})


def test_a_recipe_names_runs_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nevaluate: {forecast: {runs: [runs/half, ../other]}}\n")
    section = load(str(tmp_path / "mine.yaml")).evaluate.forecast
    assert section and section.runs == [str(tmp_path / "runs" / "half"), str(tmp_path.parent / "other")]
