"""Direct preference optimisation with Llama 3's additions (4.1.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from peft import TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import DPOConfig

from posttrain.errors import EmptyStageError, ModelError
from posttrain.pairing import best_worst_pairs
from posttrain.recipe import Dpo
from posttrain.shards import Pieces
from posttrain.stages import Job
from posttrain.tables import by_prompt
from posttrain.training.lora import lora_config
from posttrain.training.rows import pair_rows
from posttrain.training.run import arguments, train
from posttrain.training.trainers import Llama3DPOTrainer


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, reference (None: the model as it is), and what `dpo.pairs_from` names: samples, pairs,
    preferences_N. Writes a model folder."""
    section = Dpo.model_validate(job.config["dpo"])
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    pairs = [
        row
        for role in sorted(job.inputs)
        if role not in ("model", "reference")
        for row in _pairs(job, role, section.margin)
    ]
    rows, too_long = pair_rows(tokenizer, pairs, section.trl.get("max_length"))
    if not len(rows):
        raise EmptyStageError(f"dpo: no pair is left ({len(pairs)} pairs, {too_long} longer than dpo.max_length)")
    args = arguments(DPOConfig, section, job)
    reference = job.inputs.get("reference")
    if reference:
        _check_same_tokens(tokenizer, reference)
    metrics = train(
        "dpo",
        job,
        args,
        lambda: Llama3DPOTrainer(
            model=str(job.inputs["model"]),
            ref_model=_load(reference, args) if reference else None,
            args=args,
            train_dataset=rows.sort("length"),  # the reference takes them in this order; training shuffles
            processing_class=tokenizer,
            peft_config=lora_config(job, TaskType.CAUSAL_LM),
            nll_weight=section.nll_weight,
            mask_format=section.mask_format,
            pieces=Pieces(job.scratch / "reference"),
        ),
    )
    return {**metrics, "pairs": len(rows), "too_long": too_long}


def _load(reference: Path, args: DPOConfig) -> Any:
    options: Any = args.model_init_kwargs or {}
    return AutoModelForCausalLM.from_pretrained(reference, **options)


def _check_same_tokens(tokenizer: PreTrainedTokenizerBase, reference: Path) -> None:
    """Raises ModelError when the reference does not read tokens as the policy does."""
    if AutoTokenizer.from_pretrained(reference).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            "dpo: the reference has another tokenizer than the policy, so their log-probs cannot be compared",
            file=str(reference),
            hint="set dpo.reference to a model of the same family, or to start, initial, previous or averaged",
        )


def _pairs(job: Job, role: str, margin: float) -> list[dict[str, Any]]:
    """Rows with prompt, chosen, rejected from one of the inputs; best and worst of K where those are samples."""
    if role == "samples":
        return list(best_worst_pairs(by_prompt(job.inputs[role] / "scored.parquet"), margin, "samples"))
    rows = pq.read_table(job.inputs[role] / "pairs.parquet").to_pylist()
    return [row for row in rows if row["split"] == "train"]
