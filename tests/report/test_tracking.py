"""What goes to trackers, read back from TensorBoard's own files; and that it decides nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.loop_runs import FakeLauncher, go
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from posttrain.config import Sft
from posttrain.errors import InputError, RecipeError
from posttrain.job import Job
from posttrain.recipe.load import load
from posttrain.report import tracking
from posttrain.storage.store import Store
from posttrain.training import run
from posttrain.training.rows import sft_rows

BASE = Path(__file__).parents[2] / "data" / "tiny-base"


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by name, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_a_training_reports_under_the_name_of_its_round_and_stage(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    row = {"prompt": [{"role": "user", "content": "3 + 4?"}], "completion": [{"role": "assistant", "content": "7"}]}
    rows, _ = sft_rows(tokenizer, [row] * 8, None)
    section = Sft.model_validate({"max_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 2})
    report = {"to": ["tensorboard"], "project": "mine", "name": "round-2/sft"}
    job = Job(
        {"model": {"dtype": "float32"}},
        {},
        tmp_path / "work" / "key" / "out",
        tmp_path / "work" / "key" / "scratch",
        0,
        runtime={"report": report},
    )
    for path in (job.out, job.scratch):
        path.mkdir(parents=True)
    made: list[SFTTrainer] = []

    def make(args: SFTConfig) -> SFTTrainer:
        made.append(SFTTrainer(model=str(BASE), args=args, train_dataset=rows, processing_class=tokenizer))
        return made[-1]

    run.train("sft", job, section, lambda: run.arguments(SFTConfig, section, job), make)
    args: Any = made[0].args
    assert (args.run_name, args.project) == ("round-2/sft", "mine")
    logged = [(entry["step"], entry["loss"]) for entry in made[0].state.log_history if "loss" in entry]
    found = scalars(tmp_path / "logs" / "round-2" / "sft")
    assert [step for step, _ in logged] == [2, 4]
    assert found["train/loss"] == pytest.approx([pytest.approx(one, rel=1e-6) for one in logged])
    assert {"train/learning_rate", "train/grad_norm"} <= set(found)
    assert not [path for path in job.out.rglob("*") if "events" in path.name]


def test_each_round_is_a_point_of_the_series(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []
    tracked = tracking.Tracked(Store(tmp_path / "run"), "mine", ["tensorboard"])
    for n in (1, 2):
        go(tmp_path / "run", n, after_round=[lambda *round_: seen.append(round_), tracked.round_done])
    assert seen == [(0, True), (1, True), (0, False), (1, False), (2, True)]
    found = scalars(tmp_path / "run" / "logs" / "rounds")
    assert found["heldout/greedy"] == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert found["dev/mean_length"] == [(0, 20.0), (1, 20.0), (2, 20.0)]
    assert found["reward_model/pair_accuracy"] == [(1, 0.5), (2, 0.5)]


def test_a_tracker_that_fails_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    go(tmp_path / "run", 1)
    (tmp_path / "run" / "logs").write_text("no folder can be made here")
    tracking.Tracked(Store(tmp_path / "run"), "mine", ["tensorboard"]).round_done(1, ran=True)
    assert "round 1 was not sent to tensorboard: " in caplog.text


def test_where_figures_go_decides_nothing_and_every_training_is_told(tmp_path: Path) -> None:
    settings: dict[str, Any] = {}

    class Looks(FakeLauncher):
        def run(self, folder: Path) -> None:
            stage = json.loads((folder / "stage.json").read_text())
            settings[stage["stage"]] = stage["runtime"].get("report")
            super().run(folder)

    plain = go(tmp_path / "plain", 1)[0]
    assert go(tmp_path / "told", 1, "report_to=tensorboard", launcher=Looks())[0] == plain
    keys = [sorted(path.name for path in (tmp_path / one / "artifacts").iterdir()) for one in ("plain", "told")]
    assert keys[0] == keys[1]
    assert {name for name, report in settings.items() if report} == {"reward_model", "sft", "dpo"}
    told = {"to": ["tensorboard"], "project": "quickstart"}
    assert settings["reward_model"] == {**told, "name": "round-1/reward-model"}
    assert go(tmp_path / "plain", 1, "report_to=[tensorboard]") == ([], [])


def test_what_is_not_known_or_not_installed_is_refused() -> None:
    with pytest.raises(RecipeError, match="report_to"):
        load("quickstart", ["report_to=tensorbored"])
    with pytest.raises(RecipeError, match="for all stages"):
        load("quickstart", ["sft.report_to=tensorboard"])
    with pytest.raises(InputError, match=r"no_such_tracker is not installed \[recipe-package\]"):
        tracking.check(["no_such_tracker"])


def test_what_is_not_a_number_is_no_point() -> None:
    figures = {"greedy": {"value": None, "ci95": None, "n": 0}, "mean_length": 3.5, "measure": {"notes": {}}}
    shown = {"evaluate": {"heldout": figures}, "reward_model": {"pair_accuracy": {"value": None}}}
    assert tracking.values(shown) == {"heldout/mean_length": 3.5}
    assert tracking.values({"evaluate": None}) == {}
