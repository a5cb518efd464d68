"""Which trainings fit into memory, and what would make one fit: by the shape of the model alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from posttrain.errors import ResourceError
from posttrain.execution.launcher import InProcess
from posttrain.execution.resources import MicroBatch, Shape, training_peak
from posttrain.planning import check as planning
from posttrain.planning import fitting
from posttrain.recipe.load import load

SMOLLM2 = Shape(134.5e6, layers=30, hidden=576, inner=1536, heads=9, vocabulary=49152)
FULL, LORA = {"lora": None}, {"lora": {"r": 16}}
ROWS = MicroBatch(4, length=512, predicted=384)


# Peaks of one step of SFT, DPO or the reward model less those of the process before, on a CPU: GB.
@pytest.mark.parametrize(
    ("model", "micro", "measured"),
    [
        (LORA, ROWS, 7.35),
        (FULL, ROWS, 5.40),
        (FULL, MicroBatch(4, 512, 384, checkpointed=True), 2.94),
        (LORA, MicroBatch(4, 512, 384, bf16=True), 4.15),
        (LORA, MicroBatch(4, 512, 384, eager=True), 9.34),
        (LORA, MicroBatch(1, 512, 384), 1.71),
        (LORA, MicroBatch(4, 512, 0), 5.41),
    ],
)
def test_the_estimate_is_within_a_factor_of_what_was_measured(
    model: dict[str, object], micro: MicroBatch, measured: float
) -> None:
    assert 1 / 1.5 < training_peak(SMOLLM2, model, micro) / 1e9 / measured < 1.5


def test_a_shape_is_read_from_the_config_alone(tmp_path: Path) -> None:
    config = {"n_layer": 2, "n_embd": 8, "n_head": 4, "vocab_size": 100}  # as GPT-2 has it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Shape.of(tmp_path, 5.0) == Shape(5.0, 2, 8, 32, 4, 100)
    moe = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4, "vocab_size": 100}
    moe |= {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 99}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": moe}))
    assert Shape.of(tmp_path, 5.0) == Shape(5.0, 2, 8, 32, 4, 100)
    (tmp_path / "config.json").write_text("{}")
    assert Shape.of(tmp_path, 5.0) is None


def test_the_rows_of_each_training() -> None:
    recipe = load("quickstart", ["sft.max_length=60", "dpo.gradient_accumulation_steps=2"])
    sft, dpo, reward_model = (
        next(one.micro for one in fitting.trainings(recipe, 30) if one.name == name)
        for name in ("sft", "dpo", "reward_model")
    )
    assert sft == MicroBatch(32, length=60, predicted=48)
    assert dpo == MicroBatch(32, length=30 + 2 * 48, predicted=2 * 48, accumulated=True)
    assert (reward_model.length, reward_model.predicted) == (126, 0)


def test_what_does_not_fit_is_said_with_what_would() -> None:
    training = fitting.Training("sft", FULL, ROWS)
    said, notes = fitting.check([training], SMOLLM2, 16e9)
    assert said.startswith("sft 7.") and notes == []
    _, (note,) = fitting.check([training], SMOLLM2, 4e9)
    assert "its micro-batches are halved" in note
    assert "sft.per_device_train_batch_size: 1 (" in note and "sft.activation_checkpointing: true (" in note
    with pytest.raises(ResourceError, match=r"even for one row; would fit: model\.lora with .*checkpointing"):
        fitting.check([training], SMOLLM2, 1.2e9)
    with pytest.raises(ResourceError, match="take a smaller model"):
        fitting.check([training], SMOLLM2, 1e8)


def test_check_says_it_before_any_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e6))
    few = ["prompts.train.rows=:40", "prompts.dev.rows=:8", "prompts.heldout.rows=:8"]
    found = planning.check("quickstart", few, 1, True, InProcess())
    name, right, said = found.found[-1]
    assert (name, right) == ("memory", False) and "[training-memory]" in said
    assert found.plan is None and found.error is not None and found.error.exit_code == 3
