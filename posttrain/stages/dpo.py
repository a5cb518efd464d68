"""Direct preference optimisation with Llama 3's additions (4.1.4)."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import DPOConfig

from posttrain.config import Dpo
from posttrain.data.chat_template import TEXT
from posttrain.data.pairs import best_worst_pairs, once, ordered_pairs
from posttrain.data.tables import by_prompt
from posttrain.errors import EmptyStageError
from posttrain.job import Job
from posttrain.models import check_same_tokens
from posttrain.storage.pieces import Pieces
from posttrain.training.rows import EXAMPLES, pair_rows
from posttrain.training.run import arguments, train, trainer_options
from posttrain.training.trainers import Llama3DPOTrainer, PairCollator


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, reference (absent: the model itself), and the sources in `dpo.pairs_from`: samples, pairs,
    preferences_N, search. Writes a model folder."""
    section = job.section("dpo", Dpo)
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    sources = {name: _pairs(job, name, section.margin) for name in sorted(section.pairs_from)}
    pairs = [pair for source in sources.values() for pair in source]
    rows, too_long = pair_rows(tokenizer, pairs, section.trl.get("max_length"))
    if not len(rows):
        raise EmptyStageError(f"dpo: no pair is left ({len(pairs)} pairs, {too_long} longer than dpo.max_length)")
    reference = job.inputs.get("reference")
    if reference:
        check_same_tokens(job.inputs["model"], reference)
    metrics = train(
        "dpo",
        job,
        section,
        lambda: arguments(DPOConfig, section, job),
        lambda args: trainer(job, section, args, rows, tokenizer),
    )
    counts = {name: len(source) for name, source in sources.items()}
    return {**metrics, "pairs": len(rows), "too_long": too_long, "sources": counts}


def trainer(
    job: Job, section: Dpo, args: DPOConfig, rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> Llama3DPOTrainer:
    """The trainer for `rows` of `pair_rows`. Computes the reference's log-probs when it is built, of rows of similar
    length together; training shuffles."""
    options: Any = args.model_init_kwargs
    eager = options["attn_implementation"] == "eager"
    pad: Any = tokenizer.pad_token_id or 0
    reference = job.inputs.get("reference")
    return Llama3DPOTrainer(
        **trainer_options(job, args, rows.sort("length"), tokenizer, TaskType.CAUSAL_LM),
        ref_model=AutoModelForCausalLM.from_pretrained(reference, **options) if reference else None,
        data_collator=PairCollator(pad, section.packed, eager, section.mask_format),
        nll_weight=section.nll_weight,
        temperature=section.temperature,
        pieces=Pieces(job.scratch / "reference"),
    )


def examples() -> Dataset:
    """Two rows in the form of `pair_rows`, for the trial."""
    return Dataset.from_list(
        [
            {"prompt_ids": prompt, "chosen_ids": one, "rejected_ids": other}
            | {"chosen_parts": [TEXT] * len(one), "rejected_parts": [TEXT] * len(other)}
            | {"length": len(prompt) + len(one) + len(other)}
            for prompt, one, other in EXAMPLES
        ]
    )


def _pairs(job: Job, source: str, margin: float) -> list[dict[str, Any]]:
    """Rows with prompt, chosen, rejected from one source; for samples the best and the worst of K.

    A ranking edited > chosen > rejected gives three pairs, as for the reward model (4.1.2; using all of them in DPO is
    ours).
    """
    if source == "samples":
        return list(best_worst_pairs(by_prompt(job.inputs[source] / "scored.parquet"), margin, "samples"))
    names = sorted(name for name in job.inputs if name == source or name.startswith(f"{source}_"))
    rows = once([pq.read_table(job.inputs[name] / "pairs.parquet").to_pylist() for name in names])
    return [pair for row in rows if row["split"] == "train" for pair in ordered_pairs(row)]
