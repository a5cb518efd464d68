"""The step reward model: whether each step of an answer is right, by cross-entropy at its end (Lightman et al. 2023,
arXiv 2305.20050), from labels that no person gave."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset
from peft import TaskType
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import RewardConfig

from posttrain.config.step_reward import StepReward
from posttrain.data.chat_template import render_prompt
from posttrain.engines import reward_head
from posttrain.engines.reward_scorer import load_scorer
from posttrain.errors import EmptyStageError
from posttrain.evaluation import statistics
from posttrain.evaluation.first_errors import found
from posttrain.job import Job
from posttrain.storage.store import MANIFEST
from posttrain.system import device
from posttrain.training.ranks import OtherRank, rank
from posttrain.training.rows import EXAMPLES
from posttrain.training.run import arguments, train, trainer_options
from posttrain.training.steps import StepCollator, StepTrainer, labelled_ends, step_rows


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, labels (step_labels); previous (optional): the last round's step reward model, which stays where
    there are no labels. Config: step_reward, model. Writes a model with one label, whose logit at the last token of a
    step is above 0 where the step is right.

    Its accuracy, and its F1 as ProcessBench has it, are measured on the prompts that it was not trained on.

    Raises:
        EmptyStageError: there are no labels, and no earlier model.
    """
    section = job.section("step_reward", StepReward)
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    table = pq.read_table(job.inputs["labels"] / "step_labels.parquet").to_pylist()
    labelled = [{**row, "prompt_ids": list(render_prompt(tokenizer, row["prompt"]))} for row in table]
    training = [row for row in labelled if row["split"] == "train"]
    rows, too_long = step_rows(training, section.trl.get("max_length"))
    if not len(rows):
        said = f"no answer is left of {len(training)} to train on; {too_long} are longer than step_reward.max_length"
        return _previous(job, f"step_reward: {said}")
    metrics = train(
        "step_reward",
        job,
        section,
        lambda: arguments(RewardConfig, section, job),
        lambda args: trainer(job, section, args, rows, tokenizer),
    )
    heldout = [row for row in labelled if row["split"] == "heldout"]
    return {**metrics, "answers": len(rows), "too_long": too_long, **judged(heldout, job.out)}


def _previous(job: Job, said: str) -> dict[str, Any]:
    """The last round's model as it is, or the error."""
    if "previous" not in job.inputs:
        raise EmptyStageError(
            f"{said}. Steps are labelled of prompts that have right samples and wrong ones: give the round more "
            "(samples.k, samples.prompts), or leave `step_reward` out"
        )
    if rank() > 0:
        raise OtherRank  # one of them writes
    shutil.copytree(job.inputs["previous"], job.out, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
    return {"steps": 0, "answers": 0, "fallback": [f"{said}: the last round's model stays"]}


def trainer(
    job: Job, section: StepReward, args: RewardConfig, rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> StepTrainer:
    """The trainer for `rows` of `step_rows`. The tokenizer has a padding token. Does not use `section`: `args` holds
    all of it."""
    pad: Any = tokenizer.pad_token_id
    reward_head.provide(job.inputs["model"])
    return StepTrainer(**trainer_options(job, args, rows, tokenizer, TaskType.SEQ_CLS), data_collator=StepCollator(pad))


def examples() -> Dataset:
    """Two rows in the form of `step_rows`, for the trial."""
    return Dataset.from_list(
        [
            {"prompt_ids": prompt, "completion_ids": one, "ends": [1, len(one)], "right": [1.0, 0.0]}
            | {"length": len(prompt) + len(one)}
            for prompt, one, _ in EXAMPLES
        ]
    )


def judged(labelled: Sequence[Mapping[str, Any]], model: Path) -> dict[str, Any]:
    """`step_accuracy`: of the labelled steps those whose verdict the model gives; and how well it finds the first wrong
    one: see `first_errors`."""
    with_steps = [(row, ends) for row in labelled if (ends := labelled_ends(row))]
    scorer = load_scorer(str(model), "float32", device())
    prefixes = [[row["tokens"][:end] for end, _ in ends] for row, ends in with_steps]
    logits = scorer.score([row["prompt_ids"] for row, _ in with_steps], prefixes) if with_steps else []
    same, called, wrong = list[float](), list[int | None](), list[int | None]()
    for (_, ends), of_steps in zip(with_steps, logits, strict=True):
        verdicts = [label for _, label in ends]
        both = zip(of_steps, verdicts, strict=True)
        same += [float((logit > 0) == bool(label)) for logit, label in both if label is not None]
        called.append(next((at for at, logit in enumerate(of_steps) if logit <= 0), None))
        wrong.append(verdicts.index(0) if 0 in verdicts else None)
    return {"step_accuracy": statistics.proportion(same) if same else None, **found(called, wrong)}
