"""Supervised fine-tuning on what passed the filters: cross-entropy on the answer alone (Llama 3, 4.1.3)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
from peft import TaskType
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from posttrain.errors import EmptyStageError
from posttrain.recipe import Sft
from posttrain.stages import Job
from posttrain.training.lora import lora_config
from posttrain.training.mixing import annealed, guaranteed, mixed
from posttrain.training.rows import sft_rows
from posttrain.training.run import arguments, train


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, kept (filters artifact), earlier_1, … (those of earlier rounds), real (the
    prompts artifact, where sft.mix.real has a share). Config: sft, model.
    Writes a model folder.
    """
    section = Sft.model_validate(job.config["sft"])
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    earlier = sorted(name for name in job.inputs if name.startswith("earlier_"))
    sources = {"fresh": _kept(job, ["kept"]), "earlier": _kept(job, earlier)}
    chosen = mixed(sources, {"fresh": section.mix.fresh, "earlier": section.mix.earlier}, job.seed)
    others, real = len(chosen), _real(job) if section.mix.real.share else []
    chosen += guaranteed(real, section.mix.real.share, others, job.seed)
    rows, too_long = sft_rows(tokenizer, chosen, section.trl.get("max_length"))
    if not len(rows):
        raise EmptyStageError(
            f"sft: no row is left: {len(chosen)} are in the mix, {too_long} longer than sft.max_length"
        )
    count, over = len(rows), {}
    if section.anneal:
        batch = section.trl["per_device_train_batch_size"] * section.trl["gradient_accumulation_steps"]
        epochs = section.trl["num_train_epochs"]
        scores = [-math.inf if score is None else score for score in rows["score"]]
        rows = rows.select(annealed(scores, list(rows["length"]), section.anneal, epochs, batch, job.seed))
        over = {"num_train_epochs": 1.0, "train_sampling_strategy": "sequential"}  # the order is in the rows
    args = arguments(SFTConfig, section, job, **over)
    metrics = train(
        "sft",
        job,
        args,
        lambda: SFTTrainer(
            model=str(job.inputs["model"]),
            args=args,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=lora_config(job, TaskType.CAUSAL_LM),
        ),
    )
    counts = {name: len(source) for name, source in sources.items()}
    if real:
        counts |= {"real": len(real), "real_in_mix": len(chosen) - others}
    return {**metrics, "rows": count, "too_long": too_long, "sources": counts, "mix": len(chosen)}


def _real(job: Job) -> list[dict[str, Any]]:
    """What no model wrote, as rows of the mix; without a score, so none is among the best by score."""
    return [
        {
            "prompt_id": row["id"],
            "sample_index": 0,
            "prompt": row["prompt"],
            "completion": [{"role": "assistant", "content": json.loads(row["columns"])["completion"]}],
            "score": None,
        }
        for row in pq.read_table(job.inputs["real"] / "real.parquet").to_pylist()
    ]


def _kept(job: Job, names: Sequence[str]) -> list[dict[str, Any]]:
    columns = ["prompt_id", "sample_index", "prompt", "completion", "score"]
    return [
        row for name in names for row in pq.read_table(job.inputs[name] / "kept.parquet", columns=columns).to_pylist()
    ]
