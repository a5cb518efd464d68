"""`auto` in a recipe becomes what was measured, before any key is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain import shipped
from posttrain.config.training import TRAINED
from posttrain.engines.precision import CLEARLY, REPEATS
from posttrain.errors import InputError
from posttrain.execution.artifact import Artifact, StageCall
from posttrain.job import Job
from posttrain.pipeline import hardware
from posttrain.pipeline.answers import Answers, to_evaluate, to_train
from posttrain.pipeline.hardware import settled
from posttrain.pipeline.scored import Scoring
from posttrain.pipeline.training import variants
from posttrain.recipe.load import load

BASE = Artifact("base", Path("base"))
FAST = {"engine": {"name": "bfloat16"}, "training": {"name": "bfloat16"}, "attention": {"name": "eager"}}
ALL_SAID = [
    "engine.dtype=float32",
    "model.attention=sdpa",
    *(f"{name}.bf16=false" for name in ("reward_model", "sft", "dpo")),
]


class Measured:
    """A runner whose stage `hardware` says this."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found, self.submitted = found, list[StageCall]()

    def submit(self, call: StageCall) -> Artifact:
        self.submitted.append(call)
        return Artifact(call.name, Path(call.name))

    def metrics(self, artifact: Artifact) -> dict[str, Any]:
        return self.found

    def begin_round(self, number: int) -> None: ...
    def end_round(self, promoted: bool, policy: Artifact) -> None: ...
    def end(self) -> None: ...
    def stop(self) -> None: ...


@pytest.mark.parametrize(("found", "dtype", "attention"), [(FAST, "bfloat16", "eager"), ({}, "float32", "sdpa")])
def test_every_auto_is_resolved(found: dict[str, Any], dtype: str, attention: str) -> None:
    recipe = load("quickstart", ["sft.variants=[{seed: 1}, {learning_rate: 1e-5}]", "watch={}"])
    runner = Measured(found)
    after = settled(recipe, runner, BASE)
    assert [call.stage for call in runner.submitted] == ["hardware"]
    assert (after.engine.dtype, after.model.attention) == (dtype, attention)
    trained = [section for name in TRAINED if (section := getattr(after, name))]
    assert after.watch and after.sft
    sections = [*trained, after.watch.reward_model, *(each for each, _, _ in variants("sft", after.sft, 0))]
    assert [section.trl["bf16"] for section in sections] == [dtype == "bfloat16"] * len(sections)


def test_what_a_recipe_says_stays_and_where_it_says_all_nothing_is_measured() -> None:
    runner = Measured(FAST)
    after = settled(load("quickstart", ["sft.bf16=false", "engine.dtype=float32"]), runner, BASE)
    assert (after.engine.dtype, after.model.attention) == ("float32", "eager")
    assert after.sft and after.dpo and after.sft.trl["bf16"] is False and after.dpo.trl["bf16"] is True
    recipe = load("quickstart", ALL_SAID)
    runner = Measured(FAST)
    assert settled(recipe, runner, BASE) is recipe and not runner.submitted


def test_a_resolved_recipe_has_the_keys_of_one_that_says_so() -> None:
    resolved, said = settled(load("quickstart"), Measured({}), BASE), load("quickstart", ALL_SAID)
    for name in ("engine", "model", *TRAINED):
        if getattr(said, name):
            assert getattr(resolved, name).in_key() == getattr(said, name).in_key(), name


def test_int8_is_for_answers_to_training_prompts_alone() -> None:
    runner = Measured(FAST)
    recipe = settled(load("quickstart", ["engine.dtype=int8"]), runner, BASE)
    assert recipe.engine.dtype == "bfloat16"  # what reward models score in, too
    answers = Answers(recipe, runner, in_int8=True)
    for selection in (to_train({"count": 4}), to_evaluate("dev"), to_evaluate("heldout")):
        answers.submit("any", BASE, BASE, selection, {}, seed=0)
    dtypes = [call.config["engine"]["dtype"] for call in runner.submitted[1:]]
    assert dtypes == ["int8", "bfloat16", "bfloat16"]


def test_int8_is_refused_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpu", lambda: True)
    with pytest.raises(InputError, match="engine-int8"):
        settled(load("quickstart", ["engine.dtype=int8"]), Measured(FAST), BASE)


def test_reward_models_score_in_the_type_that_is_sampled_in() -> None:
    def config(dtype: str, model: Artifact | None) -> dict[str, Any]:
        recipe, runner = load("quickstart", [f"engine.dtype={dtype}"]), Measured({})
        Scoring(recipe, runner, {}, Answers(recipe, runner, False)).stage("scores", {}, {}, [], model, seed=0)
        return dict(runner.submitted[-1].config)

    assert config("bfloat16", BASE)["scoring_dtype"] == "bfloat16"  # so in the key
    assert "scoring_dtype" not in config("bfloat16", None) | config("float32", BASE)
    server = load("quickstart", ["engine={use: server, server: {kind: vllm, url: 'http://localhost:1'}}"])
    assert Scoring(server, Measured({}), {}, Answers(server, Measured({}), False)).computed_in(BASE) == {}


def test_the_choice_does_not_depend_on_the_machine_by_its_key() -> None:
    runner = Measured(FAST)
    settled(load("quickstart"), runner, BASE)
    (call,) = runner.submitted
    assert not call.config and not call.external_hashes  # a run that goes on elsewhere keeps its types


def test_the_stage_measures_the_shapes_of_the_model(tmp_path: Path) -> None:
    from posttrain.stages import hardware as stage

    model = shipped.locate("data", "tiny-base")
    found = stage.run(Job({}, {"model": model}, tmp_path / "out", tmp_path / "scratch", seed=0))
    for use in ("engine", "training"):
        ratios = found[use]["ratios"]
        assert found[use]["name"] == ("bfloat16" if min(ratios) >= CLEARLY else "float32")
        assert len(ratios) == REPEATS or max(ratios) <= 0.5  # a type that is twice as slow is measured once
    assert found["attention"]["name"] in ("sdpa", "eager")
    assert found["processor"]
