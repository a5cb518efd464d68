"""On-policy training in the loop: where it starts, what it reads, what follows from it, and wrong keys. Fake stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.loop_runs import EVALUATED, ROUND, go

from posttrain.config.online import Online
from posttrain.errors import RecipeError
from posttrain.execution.artifact import Artifact, StageCall
from posttrain.loop import play
from posttrain.planning.dry_run import DryRunner, dry_run
from posttrain.recipe.load import load
from posttrain.stages.amounts import Sets, Shares, amounts
from posttrain.storage.store import Store

ON = "online={}"


def test_it_follows_sft_and_pairs_are_sampled_from_what_it_made(tmp_path: Path) -> None:
    ran, _ = go(tmp_path, 1, ON)
    after_sft = ROUND.index("sft") + 1
    assert ran == ["prompts", *EVALUATED, *ROUND[:after_sft], "online", *ROUND[after_sft:]]
    run = Store(tmp_path)
    keys = run.read_run()["rounds"][1]["stages"]
    made = run.manifest(keys["online"])
    inputs = {"model": keys["sft"], "samples": keys["scores"], "reward_model": keys["reward_model"]}
    assert made["input_keys"] == inputs and made["config"]["rewards"]  # what scores the samples scores its completions
    for later in ("answers_pairs", "dpo"):
        assert keys["online"] in run.manifest(keys[later])["input_keys"].values()


def test_either_it_or_dpo_may_be_left_out(tmp_path: Path) -> None:
    go(tmp_path, 1, ON, "sft=null", "dpo=null")
    run = Store(tmp_path)
    keys = run.read_run()["rounds"][1]["stages"]
    assert "dpo" not in keys and "answers_pairs" not in keys
    assert run.manifest(keys["answers_dev"])["input_keys"]["policy"] == keys["online"]


class Recording(DryRunner):
    """Keeps the processes of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: dict[str, int | None] = {}

    def submit(self, call: StageCall) -> Artifact:
        self.processes[call.stage] = call.runtime.get("processes")
        return super().submit(call)


def test_it_is_trained_by_one_process_whatever_others_are(tmp_path: Path) -> None:
    runner = Recording()
    play(load("quickstart", ["online={per_device_train_batch_size: 9, group: 9}", "compute.processes=2"]), runner, 1)
    assert runner.processes["sft"] == 2 and runner.processes["online"] == 1


def test_another_reward_starts_it_anew(tmp_path: Path) -> None:
    go(tmp_path, 1, ON)
    ran, _ = go(tmp_path, 1, "online={group: 4}")
    assert ran[0] == "online"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("{group: 3}", "groups of 3 do not divide"),
        ("{group: 1}", "greater than or equal to 2"),
        ("{num_generations: 4}", "`group` is the number"),
        ("{max_completion_length: 64}", "`max_new_tokens` is the length"),
        ("{num_iterations: 2}", "each step samples anew"),
        ("{steps_per_generation: 4}", "each step samples anew"),
        ("{use_vllm: true}", "the built-in engine samples"),
        ("{reward_weights: [1.0]}", "`reward` has the weights"),
        ("{normalize_advantages: true}", "grpo has no such option"),
        ("{algorithm: rloo, loss_type: dr_grpo}", "rloo has no such option"),
        ("{algorithm: ppo}", "grpo"),
        ("{pass_rate: [0.9, 0.1]}", "the first bound is above the second"),
        ("{los_type: grpo}", "did you mean 'loss_type'"),
    ],
)
def test_a_wrong_key_says_what_to_do(keys: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("quickstart", [f"online={keys}"])
    assert said in str(caught.value) and "online" in str(caught.value)


def test_completions_are_as_long_as_samples_and_rloo_has_its_own_options() -> None:
    section = load("quickstart", ["online={algorithm: rloo, normalize_advantages: true}"]).online
    assert section and section.max_new_tokens == load("quickstart").samples.max_new_tokens
    assert section.trl_class == "RLOOConfig" and section.own_fields["num_generations"] == 8
    assert Online().trl_class == "GRPOConfig"
    for algorithm in ("grpo", "rloo"):  # without a reference
        assert load("quickstart", [f"online={{algorithm: {algorithm}, beta: 0}}"]).online


def test_it_is_planned_by_its_completions() -> None:
    stages = dry_run(
        load("quickstart", ["online={prompts: 40, num_train_epochs: 1, per_device_train_batch_size: 16}"]), 1
    )
    sets = Sets(train=4000, dev=100, heldout=100, where=1000, length=30.0)
    found = amounts(stages, sets, Shares(length=20.0))["1/online"]
    assert (found.rows, found.steps) == (40 * 8, 20) and (found.completions, found.tokens) == (320, 320 * 20)
