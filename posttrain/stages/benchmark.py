"""Evaluates a policy on a benchmark: reported only, no stage reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.config.benchmark import Benchmark
from posttrain.errors import InputError
from posttrain.evaluation import harness
from posttrain.evaluation.harness_model import DoesNotFitError, EngineModel
from posttrain.evaluation.likelihood_shards import Work
from posttrain.evaluation.statistics import FEW
from posttrain.job import Job

QUESTIONS = "questions.parquet"
_SCHEMA = pa.schema([("task", pa.string()), ("text", pa.string()), ("score", pa.float64())])


def run(job: Job) -> dict[str, Any]:
    """Inputs: policy. Config: benchmark, engine (use, dtype, shard_tokens). Writes samples.jsonl, what came of each
    question, and questions.parquet: each question's text, and its score by the task's first metric. Returns {"figures":
    by task and metric, "chat": whether questions were put by the chat template}.

    Raises:
        InputError: the task cannot be read, needs what is not installed, or a question does not fit into the model's
            context.
    """
    engine, done = job.config["engine"], 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        job.progress(done, model.asked, "requests")

    work = Work(job.inputs["policy"], job.scratch, job.workers, engine, engine["shard_tokens"], progress)
    model = EngineModel(work, job.seed)
    found = _evaluated(job, model)
    samples = found.pop("samples")
    pq.write_table(pa.Table.from_pylist(list(harness.questions(samples)), schema=_SCHEMA), job.out / QUESTIONS)
    (job.out / "samples.jsonl").write_text("".join(f"{line}\n" for line in harness.as_lines(samples)), "utf-8")
    return found


def check(job: Job) -> dict[str, Any]:
    """As `run` without computing anything. Returns the number of questions of each task, what they ask for (see
    `stages.amounts.Asked`; `answers` as pairs), and warnings."""
    engine = job.config["engine"]
    work = Work(job.inputs["policy"], job.scratch, 1, engine, engine["shard_tokens"])
    model = EngineModel(work, job.seed, dry=True)
    counts = {task: len({row["doc_id"] for row in rows}) for task, rows in _evaluated(job, model)["samples"].items()}
    few = [f"{task} has {count} questions: its intervals are wide" for task, count in counts.items() if count < FEW]
    asked = {"texts": model.texts, "read": model.read, "answers": sorted(model.answers.items())}
    return {"questions": counts, "asked": asked, **({"fallback": few} if few else {})}


def _evaluated(job: Job, model: EngineModel) -> dict[str, Any]:
    benchmark = job.section("benchmark", Benchmark)
    folder = Path(job.scratch)
    folder.mkdir(parents=True, exist_ok=True)
    tasks = harness.load(benchmark, folder)
    try:
        return harness.evaluate(tasks, benchmark, model)
    except DoesNotFitError as error:
        raise InputError(
            f"{benchmark.name}: {error}",
            hint="ask for fewer examples (`fewshot`), or leave the benchmark out",
            rule="benchmark-does-not-fit",
        ) from error
    except (ImportError, LookupError) as error:
        lacking = harness.lacks(benchmark, error)
        if lacking is None:
            raise
        raise lacking from error
