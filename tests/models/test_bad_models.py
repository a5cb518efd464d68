"""What stops a stage that is given bad models, losses or rewards: one error with stage and cause, and no output."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.tiny_models import causal_lm, reward_model, tokenizer

from posttrain.config import Dpo, RewardModel, Sft, Trained
from posttrain.data.tables import ANSWERS, PAIRS
from posttrain.errors import EngineError, ModelError, PosttrainError, StageError
from posttrain.job import Job
from posttrain.stages import _named, run_stage

BASE = Path(__file__).parents[2] / "data" / "tiny-base"
MODEL = {"dtype": "float32", "lora": None}
BREAKS = {"bf16": False, "max_steps": 3, "logging_steps": 1, "learning_rate": 1e9, "max_grad_norm": 0.0}


def says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def stopped(folder: Path, stage: str, config: dict[str, Any], inputs: dict[str, Path]) -> PosttrainError:
    """The error of this stage, after which nothing is there to be published."""
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    with pytest.raises(PosttrainError) as caught:
        run_stage(stage, Job(config, inputs, folder / "out", folder / "scratch", 0))
    assert not list((folder / "out").iterdir())
    return caught.value


def kept(folder: Path) -> Path:
    rows = [
        {
            "prompt_id": str(at),
            "sample_index": 0,
            "score": 1.0,
            "prompt": says("user", f"{at}?"),
            "completion": says("assistant", "Answer: 7"),
        }
        for at in range(8)
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "kept.parquet")
    return folder


def pairs(folder: Path) -> Path:
    rows = [
        {
            "prompt_id": str(at),
            "prompt": says("user", f"{at}?"),
            "chosen": says("assistant", "Answer: 7"),
            "rejected": says("assistant", "I do not know."),
            "source": "pairs",
            "split": "train",
            "columns": "{}",
        }
        for at in range(8)
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), folder / "pairs.parquet")
    return folder


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def other_tokens(folder: Path) -> Path:
    shutil.copytree(BASE, folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    tokenizer().save_pretrained(folder)
    return folder


def test_a_reference_of_another_tokenizer(tmp_path: Path) -> None:
    inputs = {"model": BASE, "pairs": pairs(tmp_path / "pairs"), "reference": other_tokens(tmp_path / "other")}
    config = {"dpo": Dpo.model_validate(BREAKS).model_dump(mode="json"), "model": MODEL}
    error = stopped(tmp_path, "dpo", config, inputs)
    assert isinstance(error, ModelError) and (error.rule, error.exit_code) == ("model-other-tokenizer", 2)
    assert error.message.startswith("dpo: the reference has another tokenizer than the policy")
    assert error.file == str(tmp_path / "other")


def test_variants_that_differ_in_shape(tmp_path: Path) -> None:
    one = saved(causal_lm("llama"), tmp_path / "one")
    wider = saved(causal_lm("llama", intermediate_size=96), tmp_path / "wider")
    error = stopped(tmp_path, "average", {}, {"model_1": one, "model_2": wider})
    assert isinstance(error, ModelError) and error.file == str(wider)
    assert error.message.startswith(
        "average: cannot average model.layers.0.mlp.down_proj.weight: its shapes are (32, 64)"
    )


def test_averaging_over_no_models(tmp_path: Path) -> None:
    error = stopped(tmp_path, "average", {}, {})
    assert isinstance(error, ModelError)
    assert error.message == "average: there is no model to average"


@pytest.mark.parametrize(("stage", "section"), [("sft", Sft), ("dpo", Dpo), ("reward_model", RewardModel)])
def test_a_loss_that_is_no_number(tmp_path: Path, stage: str, section: type[Trained]) -> None:
    """A learning rate of 1e9, without clipping, breaks the weights in the first step, and the second step's loss."""
    tables = {
        "sft": {"kept": kept(tmp_path / "kept")},
        "dpo": {"pairs": pairs(tmp_path / "pairs")},
        "reward_model": {"preferences_1": tmp_path / "pairs"},
    }
    config = {stage: section.model_validate(BREAKS).model_dump(mode="json"), "model": MODEL}
    error = stopped(tmp_path, stage, config, {"model": BASE, **tables[stage]})
    assert isinstance(error, StageError) and error.exit_code == 3
    text = str(error)
    assert text.startswith((f"{stage}: loss became ", f"{stage}: grad_norm became "))
    assert "nan by step" in text or "inf by step" in text
    assert "nothing was published" in text


def test_a_reward_that_is_no_number(tmp_path: Path) -> None:
    model = reward_model("llama")
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    row = {
        "prompt_id": "a",
        "sample_index": 0,
        "tag": "",
        "prompt": says("user", "a?"),
        "completion": says("assistant", "7"),
        "columns": "{}",
    }
    (tmp_path / "samples").mkdir()
    pq.write_table(pa.Table.from_pylist([row], schema=ANSWERS), tmp_path / "samples" / "answers.parquet")
    inputs = {"answers": tmp_path / "samples", "reward_model": saved(model, tmp_path / "model")}
    error = stopped(tmp_path, "scores", {"rewards": [{"use": "reward-model"}]}, inputs)
    assert isinstance(error, StageError) and error.rule == "model-scores-not-finite"
    assert str(error).startswith("scores: the reward model gave nan to an answer to prompt a")
    assert str(tmp_path / "model") in str(error)


def test_a_function_that_returns_no_number(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def f(prompts, completions, **columns):\n    return [float('inf')] * len(prompts)\n"
    )
    row = {
        "prompt_id": "a",
        "prompt": says("user", "a?"),
        "completion": says("assistant", "7"),
        "columns": "{}",
    }
    (tmp_path / "samples").mkdir()
    pq.write_table(pa.Table.from_pylist([row], schema=ANSWERS), tmp_path / "samples" / "answers.parquet")
    rewards = [{"use": str(tmp_path / "mine.py")}]
    error = stopped(tmp_path, "scores", {"rewards": rewards}, {"answers": tmp_path / "samples"})
    assert "mine.py:1: scores: f() returned inf for row 0, which is no finite number" in str(error)


def test_the_stages_name_is_said_once() -> None:
    assert _named("sft", "sft: no row") == "sft: no row"
    assert _named("reward_model", "watch.reward_model: no pair") == "watch.reward_model: no pair"
    assert _named("answers", "no server answers at http://here") == "answers: no server answers at http://here"
    assert issubclass(EngineError, StageError)  # so that it is said of these too
