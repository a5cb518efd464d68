"""On-policy training by GRPO or RLOO: the policy learns from completions of its own, sampled at each step."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import trl
from datasets import Dataset
from peft import TaskType
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer, TrainingArguments

from posttrain.config.online import Online
from posttrain.data.chat_template import render_prompt
from posttrain.data.tables import by_prompt
from posttrain.errors import EmptyStageError
from posttrain.evaluation.likelihood_shards import Work, log_likelihoods
from posttrain.job import Job
from posttrain.models import context_length
from posttrain.rewards.combine import RIGHT, combine, of_functions
from posttrain.rewards.scoring import Scorers, load_scorers, row_values
from posttrain.seeds import derive_seed
from posttrain.storage import store
from posttrain.storage.files import read_json
from posttrain.storage.pieces import Pieces
from posttrain.training.online import ROLLOUTS, TRAINERS, Score, Scored, curve, name_of
from posttrain.training.rows import EXAMPLES
from posttrain.training.run import arguments, train, trainer_options


def run(job: Job) -> dict[str, Any]:
    """Inputs: model, which is the reference too; samples (scored), whose prompts are learned from; reward_model
    (optional). Config: online, model, rewards, engine (use, dtype). Runtime: places. Writes a model folder with
    rollouts.parquet: all completions of the training, as ROLLOUTS.

    The reward model's logits are scaled by the mean and deviation that they had in `samples`. Trains in one process.

    Raises:
        EmptyStageError: there are too few prompts for a step, and the recipe says to stop then.
    """
    section = job.section("online", Online)
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["model"])
    scorers, weights = load_scorers(job)
    rows, found = _prompts(job, section, tokenizer, of_functions(weights))
    least = section.batch // section.group
    if len(rows) < least:
        return _without_prompts(job, section, least, found)
    metrics = train(
        "online",
        job,
        section,
        lambda: arguments(getattr(trl, section.trl_class), section, job),
        lambda args: trainer(job, section, args, rows, tokenizer, _score(job, scorers, weights)),
    )
    pieces = Pieces(job.scratch / "rollouts")
    tables = [pieces.read(name_of(step)) for step in range(metrics["steps"])]
    rollouts = pa.concat_tables([table for table in tables if table is not None])
    pq.write_table(rollouts, job.out / "rollouts.parquet", compression="zstd")
    return {
        **metrics,
        "prompts": found,
        "completions": rollouts.num_rows,
        "tokens": sum(rollouts["n_tokens"].to_pylist()),
        "unscored": rollouts["score"].null_count,
        "curve": curve(rollouts.to_pylist()),
        "kl": _spent(job, tables[-1]),
    }


def trainer(
    job: Job,
    section: Online,
    args: TrainingArguments,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    score: Score | None = None,
) -> Trainer:
    """The trainer for `rows` of `_prompts`. Without `score` a completion's score is its length, for the trial."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return TRAINERS[section.algorithm](
        **trainer_options(job, args, rows, tokenizer, TaskType.CAUSAL_LM),
        score=score or _by_length,
        pieces=Pieces(job.scratch / "rollouts"),
        dtype=job.config.get("engine", {}).get("dtype", "float32"),
        seed=job.seed,
    )


def examples() -> Dataset:
    """Two rows in the form of `_prompts`, for the trial."""
    return Dataset.from_list(
        [
            {"prompt_id": str(number), "prompt": [{"role": "user", "content": "a"}], "prompt_ids": prompt}
            | {"columns": "{}"}
            for number, (prompt, _, _) in enumerate(EXAMPLES)
        ]
    )


def _score(job: Job, scorers: Scorers, weights: Mapping[str, float]) -> Score:
    """Scores completions as the stage `scores` does."""
    logits = read_json(job.inputs["samples"] / store.MANIFEST)["metrics"]["logits"]

    def score(rows: Sequence[Mapping[str, Any]]) -> list[Scored]:
        each = row_values(rows, scorers)
        return [(one, combine(one, weights, logits["mean"], logits["deviation"])) for one in each]

    return score


def _by_length(rows: Sequence[Mapping[str, Any]]) -> list[Scored]:
    return [({}, float(row["n_tokens"])) for row in rows]


def _prompts(
    job: Job, section: Online, tokenizer: PreTrainedTokenizerBase, weights: Mapping[str, float]
) -> tuple[Dataset, dict[str, int]]:
    """The prompts to learn from, in the order of a draw by the seed, and how many there are of each kind: `used`,
    `below` and `above` the pass rates of the section, `too_long`, and `left_out` beyond `prompts`. Where no function
    says what is right all are used. `weights`: of the functions."""
    room = context_length(job.inputs["model"]) - section.max_new_tokens
    low, high = section.pass_rate
    rows, counts = list[dict[str, Any]](), Counter[str](used=0, below=0, above=0, too_long=0, left_out=0)
    for answers in by_prompt(job.inputs["samples"] / "scored.parquet", ["prompt_id", "prompt", "rewards", "columns"]):
        verdicts = [verdict for row in answers if (verdict := combine(row["rewards"], weights)) is not None]
        rate = fmean(verdict >= RIGHT for verdict in verdicts) if verdicts else None
        first = answers[0]
        ids = render_prompt(tokenizer, first["prompt"])
        if rate is not None and not low <= rate <= high:
            counts["below" if rate < low else "above"] += 1
        elif len(ids) > room:
            counts["too_long"] += 1
        else:
            rows.append({name: first[name] for name in ("prompt_id", "prompt", "columns")} | {"prompt_ids": ids})
    rows.sort(key=lambda row: derive_seed(job.seed, "prompts", row["prompt_id"]))
    used = rows[: section.prompts]
    counts["used"], counts["left_out"] = len(used), len(rows) - len(used)
    return Dataset.from_list(used), dict(counts)


def _without_prompts(job: Job, section: Online, least: int, found: Mapping[str, int]) -> dict[str, Any]:
    """The policy as it is, or the error."""
    said = f"online: {found['used']} prompts are left, and a step has {least}: {json.dumps(dict(found))}"
    if section.without_prompts == "stop":
        raise EmptyStageError(
            f"{said}; give the round more samples (samples.prompts), make a step smaller, widen online.pass_rate, or "
            "leave the stage out in such rounds by online.without_prompts: skip",
            rule="training-no-prompts",
        )
    for path in job.inputs["model"].iterdir():
        if path.is_file() and path.name not in (store.MANIFEST, "rollouts.parquet"):
            shutil.copy(path, job.out)
    pq.write_table(ROLLOUTS.empty_table(), job.out / "rollouts.parquet")
    return {"steps": 0, "prompts": dict(found), "skipped": said}


def _spent(job: Job, last: pa.Table) -> float | None:
    """How far the policy of the last step is from the one that it began as, in nats a completion: the mean log ratio of
    the completions that it sampled then. None where the engine gave no log-probs."""
    rows = last.to_pylist()
    if any(row["logprob"] is None for row in rows):
        return None
    tokenizer, engine = AutoTokenizer.from_pretrained(job.inputs["model"]), job.config["engine"]
    pairs = [(tuple(render_prompt(tokenizer, row["prompt"])), tuple(row["tokens"])) for row in rows]
    work = Work(job.inputs["model"], job.scratch / "start", job.workers, engine, engine["shard_tokens"])
    before = [total for total, _ in log_likelihoods(pairs, work)]
    return fmean(row["logprob"] - other for row, other in zip(rows, before, strict=True))
