"""Supervised fine-tuning on the rows that passed the filters: cross-entropy on the answer alone (Llama 3, 4.1.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset
from peft import TaskType
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import SFTConfig

from posttrain.config import Sft
from posttrain.data.tables import CORRECTED, SEARCHED
from posttrain.errors import EmptyStageError
from posttrain.job import Job
from posttrain.training.balancing import balanced
from posttrain.training.mixing import annealed, drawn, guaranteed, mixed, passes
from posttrain.training.rows import EXAMPLES, IGNORED, sft_rows
from posttrain.training.run import arguments, train, trainer_options
from posttrain.training.trainers import AnswerSFTTrainer


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, kept (filters artifact), earlier_001, … (those of earlier rounds), real (the prompts artifact, if
    sft.mix.real has a share). Config: sft, model. Writes a model folder.
    """
    section = job.section("sft", Sft)
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    by = section.mix.balance.by if section.mix.balance else None
    kept, mix = _kept(job, ["kept"], by), section.mix
    tagged = {tag: [row for row in kept if row.get("tag") == tag] for tag in (SEARCHED, CORRECTED)}
    fresh = [row for row in kept if row.get("tag") not in tagged]
    sources = {"fresh": fresh, "earlier": _kept(job, job.numbered("earlier"), by)}
    sources |= {tag: some for tag, some in tagged.items() if some}
    chosen = mixed(sources, {name: getattr(mix, name) for name in sources}, job.seed)
    extra = {}
    if section.mix.balance:
        chosen, extra["balance"] = balanced(chosen, section.mix.balance, lambda row: drawn(job.seed, "balance", row))
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
        epochs = passes(section.trl, len(rows), batch)
        scores = [-math.inf if score is None else score for score in rows["score"]]
        rows = rows.select(annealed(scores, list(rows["length"]), section.anneal, epochs, batch, job.seed))
        over = {"num_train_epochs": 1.0, "train_sampling_strategy": "sequential"}  # the order is in the rows
    metrics = train(
        "sft",
        job,
        section,
        lambda: arguments(SFTConfig, section, job, **over),
        lambda args: trainer(job, section, args, rows, tokenizer),
    )
    counts = {name: len(source) for name, source in sources.items()}
    if real:
        counts |= {"real": len(real), "real_in_mix": len(chosen) - others}
    return {**metrics, "rows": count, "too_long": too_long, "sources": counts, "mix": len(chosen), **extra}


def trainer(
    job: Job, section: Sft, args: SFTConfig, rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> AnswerSFTTrainer:
    """The trainer for `rows` of `sft_rows`."""
    options = trainer_options(job, args, rows, tokenizer, TaskType.CAUSAL_LM)
    return AnswerSFTTrainer.made(temperature=section.temperature, **options)


def examples() -> Dataset:
    """Two rows in the form of `sft_rows`, for the trial."""
    return Dataset.from_list(
        [
            {"input_ids": [*prompt, *answer], "labels": [IGNORED] * len(prompt) + answer, "score": 1.0}
            | {"length": len(prompt) + len(answer)}
            for prompt, answer, _ in EXAMPLES
        ]
    )


def _real(job: Job) -> list[dict[str, Any]]:
    """Real data, not sampled from a model, as rows of the mix. It has no score, so annealing ranks it last."""
    rows = pq.read_table(job.inputs["real"] / "real.parquet").to_pylist()
    return [{**row, "prompt_id": row["id"], "sample_index": 0, "score": None} for row in rows]


def _kept(job: Job, names: Sequence[str], by: str | None) -> list[dict[str, Any]]:
    """The kept rows of these inputs. `by`: the column to balance by, of the table or of the prompts' own."""
    columns = ["prompt_id", "sample_index", "tag", "prompt", "completion", "score", *(["columns", by] if by else [])]
    tables = [job.inputs[name] / "kept.parquet" for name in names]
    return [
        row
        for table in tables
        for row in pq.read_table(
            table, columns=[name for name in columns if name in pq.read_schema(table).names]
        ).to_pylist()
    ]
