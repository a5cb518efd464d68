"""A training that is killed goes on at its last whole checkpoint and ends with the bits of one that never was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.interrupted import BATCH, FIELDS, ROWS, SECTIONS, STEPS, Killed, Training

from posttrain.training import head


@pytest.mark.slow
@pytest.mark.parametrize("name", SECTIONS)
def test_killed_at_any_step_a_training_ends_with_the_same_bits_and_figures(tmp_path: Path, name: str) -> None:
    whole, killed = Training(name, tmp_path / "whole"), Training(name, tmp_path / "killed")
    figures = whole.go()
    assert whole.steps == list(range(1, STEPS + 1))
    for step in (1, 3, 5, 7):  # before any checkpoint; in the first epoch; at the start of the second; in it
        with pytest.raises(Killed):
            killed.go(dies_after=step)
    told = killed.go()
    killed.go()  # died after its last step, before it was published
    assert killed.bits() == whole.bits()
    assert told["loss"] == pytest.approx(figures["loss"], rel=1e-6)
    assert told["last"]["loss"] == figures["last"]["loss"]
    repeated = len(killed.steps) - STEPS
    assert repeated == 1 + 1 + 1 + 1 + FIELDS["save_steps"]  # none more than there are between two checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "reward_model"])
def test_so_does_one_with_the_products_for_real_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(head, "_LARGE", 1)
    whole, killed = (Training(name, tmp_path / folder, bf16=True) for folder in ("whole", "killed"))
    for training in (whole, killed):
        training.config["model"] |= {"lora": {"r": 2}, "attention": "eager"}
    whole.go()
    with pytest.raises(Killed):
        killed.go(dies_after=5)
    killed.go()
    assert killed.bits() == whole.bits()


def test_an_end_in_the_middle_of_an_epoch_is_an_end_when_resumed_too(tmp_path: Path) -> None:
    training = Training("reward_model", tmp_path, max_steps=6)
    training.go()
    before = training.bits()
    assert training.go()["steps"] == 6
    assert training.bits() == before
    assert training.steps == [1, 2, 3, 4, 5, 6, 5, 6]  # the last checkpoint is that of step 4


def damage_optimizer(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()  # transformers would go on with a fresh one


def flip_weights(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_optimizer, pytest.param(flip_weights, marks=pytest.mark.slow)])
def test_with_the_newest_checkpoint_damaged_it_goes_on_from_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    whole, killed = Training("sft", tmp_path / "whole"), Training("sft", tmp_path / "killed")
    whole.go()
    with pytest.raises(Killed):
        killed.go(dies_after=7)
    newest, before = killed.checkpoints()
    damage(newest)
    assert killed.go()["resumed_at"] == int(before.name.rpartition("-")[2]) == 4
    assert killed.bits() == whole.bits()


def test_checkpoints_come_by_the_clock_too(tmp_path: Path) -> None:
    training = Training("sft", tmp_path, save_steps=1000)
    with pytest.raises(Killed):
        training.go(dies_after=5, runtime={"checkpoint_minutes": 1e-9})
    assert training.checkpoints()[0].name == "checkpoint-4"
    assert training.go()["resumed_at"] == 4


@pytest.mark.slow
def test_the_references_log_probs_are_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.training import trainers

    monkeypatch.setattr(trainers, "_REFERENCE_ROWS", 8)
    whole, killed = Training("dpo", tmp_path / "whole"), Training("dpo", tmp_path / "killed")
    asked: list[int] = []
    compute = trainers.Llama3DPOTrainer.compute_ref_log_probs

    def counting(self: Any, model: Any, inputs: Any) -> Any:
        asked.append(len(inputs["input_ids"]))
        if len(asked) == 3:
            raise Killed
        return compute(self, model, inputs)

    whole.go()
    monkeypatch.setattr(trainers.Llama3DPOTrainer, "compute_ref_log_probs", counting)
    with pytest.raises(Killed):
        killed.go()
    killed.go()
    assert len(asked) == 1 + ROWS // BATCH  # two batches are a piece: the first piece is not asked for again
    killed.go()
    assert len(asked) == 1 + ROWS // BATCH
    assert killed.bits() == whole.bits()
