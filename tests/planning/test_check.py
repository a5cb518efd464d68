"""`posttrain check`: what is wrong is found before anything is trained, and the plan is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.benchmarks import GENERATED, MULTIPLE_CHOICE, task

from posttrain import shipped
from posttrain.config import by_round
from posttrain.errors import RewardError
from posttrain.execution.launcher import InProcess
from posttrain.models import inspect_model
from posttrain.planning import check as planning
from posttrain.planning.check import golden_cases
from posttrain.planning.costs import Cost
from posttrain.recipe.load import load
from posttrain.stages.amounts import Sets, Shares

FEW = ["prompts.train.rows=:300", "prompts.dev.rows=:40", "prompts.heldout.rows=:40"]


def check(recipe: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "posttrain", "check", recipe, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def sets(*settings: str) -> list[str]:
    return [f"--set={setting}" for setting in settings]


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_golden_cases_are_asked(tmp_path: Path) -> None:
    said = golden_cases(load("quickstart"))
    assert "word-problems.py gives 18 golden cases" in said
    mine = tmp_path / "mine.py"
    mine.write_text("def f(prompts, completions, **columns):\n    return [0.0 for _ in prompts]\n")
    recipe = load("quickstart", [f"reward.0.use={mine}"])
    assert "mine.py has no golden cases" in golden_cases(recipe)
    case = {"prompt": "a?", "completion": "b", "columns": {}, "expected": 1.0}
    (tmp_path / "mine.cases.jsonl").write_text(json.dumps(case) + "\n")
    with pytest.raises(RewardError, match=r"mine\.cases\.jsonl:1: f\(\) gave 0\.0, expected 1\.0 \[reward-cases\]"):
        golden_cases(recipe)


def test_a_recipe_that_cannot_be_read_is_told_as_by_every_command() -> None:
    done = check("quickstart", *sets("dpo.learning_rat=1"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'learning_rate'" in done.stderr


@pytest.mark.slow
def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def f(prompts, completions, solution, **columns):\n    return [0.0 for _ in prompts]\n")
    server = "engine={use: server, server: {kind: vllm, url: 'http://127.0.0.1:9'}}"
    done = check("quickstart", "--json", "--no-probe", *sets(*FEW, f"reward.0.use={mine}", server))
    found = {each["name"]: each for each in told(done)["checks"]}
    assert done.returncode == 3  # of the first that is wrong, the engine
    assert not found["engine"]["right"] and "no server answers" in found["engine"]["said"]
    assert not found["prompts"]["right"] and "needs the column 'solution'" in found["prompts"]["said"]
    assert found["model"]["right"] and told(done)["plan"] is None


@pytest.mark.slow
def test_the_plan_is_measured_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", "check", "quickstart", "--n", "2", "--json", *sets(*FEW)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    found = told(done)
    assert done.returncode == 0, done.stdout
    assert all(each["right"] for each in found["checks"])
    plan = found["plan"]
    assert plan["not_measured"] == [] and plan["seconds"] > 1 and plan["memory"] > 2**27
    assert [entry["round"] for entry in plan["rounds"]] == [0, 1, 2]
    assert plan["sets"]["dev"] == 40
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_benchmark_is_counted_and_its_time_is_in_the_plan(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs posttrain[eval]")
    asked = f"evaluate.benchmarks=[{task(tmp_path, 'apples', GENERATED)}, {task(tmp_path, 'mc', MULTIPLE_CHOICE)}]"
    done = check("quickstart", "--json", *sets(*FEW, asked))
    found = told(done)
    said = {each["name"]: each["said"] for each in found["checks"]}["benchmarks"]
    assert said.startswith("apples: 12 answers of up to 24 tokens; mc: 48 log-likelihoods, ")
    stages = {stage["stage"]: stage for stage in found["plan"]["rounds"][1]["stages"]}
    assert stages["benchmark_apples"]["completions"] == 12 and stages["benchmark_mc"]["rows"] == 48
    assert stages["benchmark_apples"]["seconds"] > 0 and stages["benchmark_mc"]["seconds"] > 0
    assert found["plan"]["not_measured"] == []
    assert any("looking for benchmarks' questions" in note for note in found["notes"])


def test_beside_a_server_what_the_built_in_engine_computes_is_left_out_of_the_plan_and_told() -> None:
    costs = {name: Cost(0.0, 0.0, 0.1, 0.0, 0.0, 0.0) for name in ("answers", "evaluate", "scores")}
    sets, asked = Sets(train=10, dev=5, heldout=5, where=10, length=9.0), ["evaluate.memorisation={n: 16}"]

    def planned(overrides: list[str]) -> tuple[set[str], list[str]]:
        recipe = load("quickstart", overrides)
        made = planning._plan(recipe, inspect_model(recipe.model), 1, sets, Shares(length=8.0), costs, 0, 0.0)
        return {one["stage"] for one in made["rounds"][1]["stages"]}, planning._not_in_the_plan(recipe)

    stages, notes = planned(asked)
    assert "memorisation" in stages and notes == []
    stages, notes = planned([*asked, "engine={use: server, server: {kind: vllm, url: 'http://127.0.0.1:9'}}"])
    assert "memorisation" not in stages and "what was measured is the server" in notes[0]


PROBLEM = {
    "question": "What is 1 + {n}?",
    "answer": "#### {n}",
    "prompt": "What is 1 + {n}?",
    "chosen": "{n}.",
    "rejected": "x",
}
# What stands in for the model and the prompts of a recipe for real use.
STAND_IN = ["model.path=tiny-base", "samples.max_new_tokens=48"]


@pytest.mark.parametrize("name", shipped.names("recipes"))
def test_every_shipped_recipe_passes_offline_with_a_model_and_prompts_that_stand_in(tmp_path: Path, name: str) -> None:
    changes = list(STAND_IN)
    if name not in ("quickstart", "reasoning"):  # whose prompts are shipped
        for at, part in enumerate(("train", "dev", "heldout")):
            rows = [{key: text.replace("{n}", str(at * 20 + n)) for key, text in PROBLEM.items()} for n in range(20)]
            if name == "instructions":
                rows = [{**row, "instruction_id_list": [], "kwargs": [], "hint": None} for row in rows]
            if by_round(load(name, files=False).prompts.train)[0].columns:
                rows = [{key: row[key] for key in ("question", "answer")} for row in rows]
            path = tmp_path / f"{part}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            changes.append(f"prompts.{part}.path={path}")
            if part == "train" and name == "ultrafeedback":
                changes.append(f"preferences.given.path={path}")
    found = planning.check(name, changes, 2, False, InProcess())
    assert [said for _, right, said in found.found if not right] == []
    assert found.plan and found.plan["completions"] > 0
