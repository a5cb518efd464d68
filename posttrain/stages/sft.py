"""Supervised fine-tuning on what passed the filters: cross-entropy on the answer alone (Llama 3, 4.1.3)."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
from peft import TaskType
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from posttrain.errors import EmptyStageError
from posttrain.recipe import Sft
from posttrain.stages import Job
from posttrain.training.lora import lora_config
from posttrain.training.rows import sft_rows
from posttrain.training.run import arguments, train


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, kept (filters artifact). Config: sft, model. Writes a model folder."""
    section = Sft.model_validate(job.config["sft"])
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    kept = pq.read_table(job.inputs["kept"] / "kept.parquet", columns=["prompt", "completion"]).to_pylist()
    rows, too_long = sft_rows(tokenizer, kept, section.trl.get("max_length"))
    if not len(rows):
        raise EmptyStageError(f"sft: all {too_long} kept samples are longer than sft.max_length")
    args = arguments(SFTConfig, section, job)
    metrics = train(
        "sft",
        job,
        lambda: SFTTrainer(
            model=str(job.inputs["model"]),
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=lora_config(job, TaskType.CAUSAL_LM),
        ),
    )
    return {**metrics, "rows": len(rows), "too_long": too_long}
