"""How a training runs: micro-batches that fit into memory, and what differs on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from posttrain.config import Sft
from posttrain.errors import StageError
from posttrain.job import Job
from posttrain.stages import sft
from posttrain.stages.prompts import REAL
from posttrain.training import run
from posttrain.training.rows import sft_rows

BASE = Path(__file__).parents[2] / "data" / "tiny-base"


class SmallMemory(SFTTrainer):
    """Stands in for a device on which no more than `fits` rows have room."""

    fits = 2

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if len(inputs["input_ids"]) > self.fits:
            raise torch.OutOfMemoryError("there is no room")
        return super().training_step(model, inputs, num_items_in_batch)


def trained(folder: Path, fits: int, **fields: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metrics and weights of one epoch over 16 rows."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    row = {
        "prompt": [{"role": "user", "content": "3 + 4?"}],
        "completion": [{"role": "assistant", "content": "Answer: 7"}],
    }
    rows, _ = sft_rows(tokenizer, [row] * 16, None)
    section = Sft.model_validate({"num_train_epochs": 1.0, "learning_rate": 1e-3, "max_length": None, **fields})
    job = Job({"model": {"dtype": "float32"}}, {}, folder / "out", folder / "scratch", seed=0)
    for path in (job.out, job.scratch):
        path.mkdir(parents=True)

    def make(args: SFTConfig) -> SFTTrainer:
        trainer = SmallMemory(model=str(BASE), args=args, train_dataset=rows, processing_class=tokenizer)
        trainer.fits = fits
        return trainer

    metrics = run.train("sft", job, section, lambda: run.arguments(SFTConfig, section, job), make)
    return metrics, load_file(job.out / "model.safetensors")


def test_a_batch_that_does_not_fit_is_split_and_a_step_learns_from_the_same_rows(tmp_path: Path) -> None:
    metrics, weights = trained(tmp_path / "split", 2, per_device_train_batch_size=8)
    assert (metrics["micro_batch"], metrics["steps"]) == (2, 2)
    asked, wanted = trained(tmp_path / "asked", 99, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert (asked["micro_batch"], asked["steps"]) == (2, 2)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_where_not_even_one_row_fits_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"single row; set sft\.max_length or model\.lora"):
        trained(tmp_path, 0, per_device_train_batch_size=4)
    assert not any((tmp_path / "out").iterdir())


def test_as_many_rows_are_left_as_there_are_processes(tmp_path: Path) -> None:
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=4)
    run.shrink(args, 1, 2)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 2)


@pytest.mark.parametrize(
    ("asked", "fits", "made"), [((32, 1), 32, (32, 1)), ((32, 1), 12, (8, 4)), ((6, 2), 5, (4, 3))]
)
def test_the_rows_of_a_step_stay_what_they_are(
    asked: tuple[int, int], fits: int, made: tuple[int, int], tmp_path: Path
) -> None:
    args = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=asked[0],
        gradient_accumulation_steps=asked[1],
    )
    run.shrink(args, fits)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == made


def test_on_a_gpu_the_recipes_fields_go_to_trl_as_they_are(tmp_path: Path) -> None:
    """A stand-in for the check of the device: none is here. What was measured on one is in docs/speed.md."""
    section = Sft.model_validate({"learning_rate": 1e-3})
    job = Job({}, {}, tmp_path, tmp_path, seed=3)
    there, here = (run.fields(section, job, cuda=cuda) for cuda in (True, False))
    assert not {"use_cpu", "bf16", "activation_checkpointing"} & set(there)
    assert there["model_init_kwargs"]["attn_implementation"] == "sdpa"
    assert here["use_cpu"] and here["seed"] == there["seed"] == 3


def said(number: int, question: str, answer: str) -> dict[str, Any]:
    messages = {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }
    return {"id": str(number), "prompt_id": str(number), "sample_index": 0, "score": 1.0, **messages}


def test_sft_learns_from_what_no_model_wrote_for_its_share_of_an_epoch(tmp_path: Path) -> None:
    """The stage itself. There are 3 real rows for 16 places: each comes 5 or 6 times."""
    sampled = [said(at, f"{at} + 4?", f"Answer: {at + 4}") for at in range(16)]
    real = [said(at, question, "Good morning, neighbour!") for at, question in enumerate(("Hello?", "Hi?", "Hey?"))]
    for name, table in (("kept", pa.Table.from_pylist(sampled)), ("real", pa.Table.from_pylist(real, REAL))):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / f"{name}.parquet")

    def run_stage(share: float) -> tuple[dict[str, Any], float]:
        """The metrics, and the mean loss on the real rows afterwards."""
        folder = tmp_path / str(share)
        fields = {"num_train_epochs": 2.0, "learning_rate": 1e-3, "mix": {"real": {"share": share}}}
        config = {"sft": Sft.model_validate(fields).model_dump(mode="json"), "model": {"dtype": "float32"}}
        inputs = {"model": BASE, "kept": tmp_path / "kept", "real": tmp_path / "real"}
        job = Job(config, inputs, folder / "out", folder / "scratch", seed=0)
        for path in (job.out, job.scratch):
            path.mkdir(parents=True)
        metrics = sft.run(job)
        model: Any = AutoModelForCausalLM.from_pretrained(job.out)
        tokenizer = AutoTokenizer.from_pretrained(job.out)
        with torch.inference_mode():
            texts = [tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False) for row in real]
            rows = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
            return metrics, sum(float(model(input_ids=ids, labels=ids).loss) for ids in rows) / len(rows)

    without, with_real = run_stage(0.0), run_stage(0.5)
    assert without[0]["sources"] == {"fresh": 16, "earlier": 0} and without[0]["rows"] == 16
    assert with_real[0]["sources"] == {"fresh": 16, "earlier": 0, "real": 3, "real_in_mix": 16}
    assert with_real[0]["rows"] == with_real[0]["mix"] == 32
    assert with_real[1] < without[1] - 0.5
