"""KTO: trains on single answers labelled good or bad, without pairs (Ethayarajh et al. 2024, arXiv 2402.01306)."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from datasets import Dataset
from peft import TaskType
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import KTOConfig

from posttrain.config import PromptSet
from posttrain.config.kto import Kto
from posttrain.data.load import read_labelled
from posttrain.data.tables import by_prompt, column
from posttrain.errors import EmptyStageError
from posttrain.job import Job
from posttrain.models import context_length
from posttrain.storage.pieces import Pieces
from posttrain.training.kto import LabelledCollator, StepKTOTrainer, in_steps, labelled_rows
from posttrain.training.rows import EXAMPLES
from posttrain.training.run import arguments, train, trainer_options


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, which is the reference too; samples (scored); prompts if rows are given. Config: kto, model.
    Runtime: given (optional), places: lines of keys in the recipe. Writes a model folder.

    Raises:
        DataError: the given rows cannot be read.
        EmptyStageError: no good answer is left, or no bad one.
    """
    section = job.section("kto", Kto)
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    dropped: Counter[str] = Counter()
    readers = {"samples": _sampled, "given": _given}
    sources = {name: readers[name](job, section, dropped) for name in sorted(section.rows_from)}
    room = min(
        section.trl.get("max_length") or context_length(job.inputs["model"]), context_length(job.inputs["model"])
    )
    rows, unfit = labelled_rows(tokenizer, [row for source in sources.values() for row in source], room)
    dropped.update(unfit)
    good = sum(rows["label"]) if len(rows) else 0
    _check_both(job, section, good, len(rows) - good, dropped)
    rows = in_steps(rows, section.batch, job.seed, section.measures_kl)
    if section.trl.get("max_steps", -1) > 0:  # the reference need not read more than there are steps for
        rows = rows.select(range(min(len(rows), section.trl["max_steps"] * section.batch)))
    metrics = train(
        "kto",
        job,
        section,
        lambda: arguments(KTOConfig, section, job),
        lambda args: trainer(job, section, args, rows, tokenizer),
    )
    counts = {name: len(source) for name, source in sources.items()}
    labels = {"good": sum(rows["label"]), "bad": len(rows) - sum(rows["label"])}
    return {**metrics, "rows": len(rows), "labels": labels, "dropped": dict(dropped), "sources": counts}


def trainer(
    job: Job, section: Kto, args: KTOConfig, rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> StepKTOTrainer:
    """The trainer for `rows` of `in_steps`. Computes the reference's log-probs when it is built. Does not use
    `section`: `args` holds all of it."""
    pad: Any = tokenizer.pad_token_id or 0
    return StepKTOTrainer(
        **trainer_options(job, args, rows, tokenizer, TaskType.CAUSAL_LM),
        data_collator=LabelledCollator(pad),
        pieces=Pieces(job.scratch / "reference"),
    )


def examples() -> Dataset:
    """Two rows in the form of `in_steps`, for the trial."""
    return Dataset.from_list(
        [
            {"prompt_ids": prompt, "label": bool(number), "length": len(prompt) + len(one)}
            | {"completion_ids": one, "trained": [True] * len(one)}
            | {"KL_completion_ids": other, "KL_trained": [True] * len(other)}
            for number, (prompt, one, other) in enumerate(EXAMPLES)
        ]
    )


def _sampled(job: Job, section: Kto, dropped: Counter[str]) -> list[dict[str, Any]]:
    """The round's samples, labelled by score; those between the thresholds are dropped and counted."""
    rows = []
    columns = ["prompt_id", "prompt", "completion", "score", "rewards"]
    for row in (row for group in by_prompt(job.inputs["samples"] / "scored.parquet", columns) for row in group):
        label = None if row["score"] is None else section.label(row["score"])
        if label is None:
            dropped["unscored" if row["score"] is None else "between_thresholds"] += 1
        else:
            rows.append({"prompt": row["prompt"], "completion": row["completion"], "label": label})
    return rows


def _given(job: Job, section: Kto, dropped: Counter[str]) -> list[dict[str, Any]]:
    """The round's given answers, without those to evaluation prompts."""
    settings = job.runtime["given"]
    sets = [job.inputs["prompts"] / f"{name}.parquet" for name in ("dev", "heldout")]
    evaluated = {one for table in sets for one in column(table, "id")}
    rows = []
    given = PromptSet.model_validate(settings["set"])
    for one in read_labelled(given, settings["system"], where="kto.given", counts=dropped):
        if one.prompt.id in evaluated:
            dropped["in_an_evaluation_set"] += 1
        else:
            rows.append({"prompt": one.prompt.messages, "completion": one.completion, "label": one.label})
    return rows


def _check_both(job: Job, section: Kto, good: int, bad: int, dropped: Counter[str]) -> None:
    if good and bad:
        return
    places = job.runtime.get("places", {})
    file, line, _ = places.get("kto.threshold") or places.get("kto") or ("the recipe", None, None)
    where = f"{file}:{line}" if line else file
    by_score = f"move kto.threshold ({section.threshold})" if "samples" in section.rows_from else "give other rows"
    raise EmptyStageError(
        f"kto: no {'bad' if good else 'good'} answer is left at {where}: {good} good, {bad} bad, left out "
        f"{json.dumps(dropped)}; {by_score}, or leave KTO out by `kto: null`",
        rule="training-one-label",
    )
