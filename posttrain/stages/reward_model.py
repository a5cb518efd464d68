"""The reward model: loss −log σ(r_chosen − r_rejected) on all preferences so far, from the base (Llama 3, 4.1.2)."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from peft import TaskType
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import RewardConfig

from posttrain.config import RewardModel
from posttrain.data.pairs import once
from posttrain.engines import reward_head
from posttrain.errors import EmptyStageError
from posttrain.evaluation import statistics
from posttrain.evaluation.calibration import calibration
from posttrain.job import Job
from posttrain.rewards.scoring import model_rewards, scored_slowly
from posttrain.storage.pieces import Pieces, cut
from posttrain.training.ranking import LLAMA2_MARGINS, RankingCollator, RankingTrainer, ranked_rows
from posttrain.training.rows import EXAMPLES
from posttrain.training.run import arguments, train, trainer_options

_PAIRS = 2048  # held-out pairs that are scored together, and kept


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, preferences_1 ... preferences_R. Config: reward_model, model, split (optional: the split of pairs
    that it is trained on; `watch` for the second reward model). Writes a model with one label.

    Its accuracy is measured on the held-out pairs of the latest preferences, on which no reward model is trained.
    """
    section = job.section("reward_model", RewardModel)
    tables = [pq.read_table(job.inputs[name] / "pairs.parquet").to_pylist() for name in job.numbered("preferences")]
    split = job.config.get("split", "train")
    name = "reward_model" if split == "train" else f"{split}.reward_model"  # as the recipe calls it
    training = [row for row in once(tables) if row["split"] == split]
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    if tokenizer.pad_token_id is None:  # as TRL would do, but before the rows are made: whoever scores sees this one
        tokenizer.pad_token = tokenizer.eos_token
    bounds = LLAMA2_MARGINS if section.margin == "llama2" else None
    rows, dropped = ranked_rows(tokenizer, training, section.trl.get("max_length"), bounds, section.max_similarity)
    if not len(rows):
        raise EmptyStageError(f"{name}: no pair is left of {len(training)}: {json.dumps(dropped)}")
    metrics = train(
        name,
        job,
        section,
        lambda: arguments(RewardConfig, section, job),
        lambda args: trainer(job, section, args, rows, tokenizer),
    )
    margins = pair_margins(heldout_pairs(job), str(job.out), Pieces(job.scratch / "heldout"))
    accuracy = statistics.proportion([float(margin > 0) for margin in margins])
    fallback = [*metrics.pop("fallback", []), *scored_slowly(str(job.out))]
    extra = {"fallback": fallback} if fallback else {}
    return {
        **metrics,
        "pairs": len(rows),
        "dropped": dropped,
        "pair_accuracy": accuracy,
        **calibration(margins),
        **extra,
    }


def trainer(
    job: Job, section: RewardModel, args: RewardConfig, rows: Dataset, tokenizer: PreTrainedTokenizerBase
) -> RankingTrainer:
    """The trainer for `rows` of `ranked_rows`. The tokenizer has a padding token."""
    options: Any = args.model_init_kwargs
    eager = options["attn_implementation"] == "eager"
    pad: Any = tokenizer.pad_token_id
    reward_head.provide(job.inputs["model"])
    return RankingTrainer(
        **trainer_options(job, args, rows, tokenizer, TaskType.SEQ_CLS),
        data_collator=RankingCollator(pad, packed=section.packed, additive=eager),
    )


def examples() -> Dataset:
    """Two rows in the form of `ranked_rows`, for the trial."""
    return Dataset.from_list(
        [
            {"prompt_ids": prompt, "responses": [one, other], "margin": 0.0}
            | {"length": len(prompt) + len(one) + len(other)}
            for prompt, one, other in EXAMPLES
        ]
    )


def heldout_pairs(job: Job) -> list[dict[str, Any]]:
    """The pairs of the latest preferences that no reward model is trained on."""
    table = pq.read_table(job.inputs[job.numbered("preferences")[-1]] / "pairs.parquet").to_pylist()
    return [row for row in table if row["split"] == "heldout"]


def pair_margins(pairs: list[dict[str, Any]], reward_model: str, pieces: Pieces) -> list[float]:
    """The reward of each pair's chosen answer minus that of the rejected one. `pieces`: finished parts, to resume."""

    def scored(part: Sequence[dict[str, Any]]) -> pa.Table:
        answers = [
            {"prompt_id": pair["prompt_id"], "prompt": pair["prompt"], "completion": pair[side]}
            for pair in part
            for side in ("chosen", "rejected")
        ]
        rewards = model_rewards(answers, reward_model)
        return pa.table({"margin": [rewards[i] - rewards[i + 1] for i in range(0, len(rewards), 2)]})

    tables = [
        pieces.made(f"pairs-{number}", functools.partial(scored, part))
        for number, part in enumerate(cut(pairs, _PAIRS))
    ]
    return [margin for table in tables for margin in table["margin"].to_pylist()]
