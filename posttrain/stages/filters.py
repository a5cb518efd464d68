"""Runs the recipe's filters over the scored candidates: kept rows go to SFT, dropped rows are stored with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import filters
from posttrain.config.keys import join
from posttrain.data.tables import column
from posttrain.errors import EmptyStageError
from posttrain.job import Job
from posttrain.rewards.judge_cache import judge_metrics
from posttrain.storage.pieces import Pieces

ROWS = 8192  # in a batch


def run(job: Job) -> dict[str, Any]:
    """Inputs: scored, prompts, earlier_001, … (filters artifacts of earlier rounds, for filters across rounds),
    quality_classifier and policy (for filters that read them). Config: filters, special_tokens (for filters that read
    them). Writes kept.parquet and dropped.parquet.

    The filters' context holds the prompts of dev, held-out and further evaluation sets.

    Raises:
        EmptyStageError: no row is left; the message names the filter that dropped most.
    """
    source = pq.ParquetFile(job.inputs["scored"] / "scored.parquet")
    schema = source.schema_arrow
    prompts = [
        filters.message_text(row)
        for name in ("dev", "heldout", "against")
        if (job.inputs["prompts"] / f"{name}.parquet").exists()
        for row in column(job.inputs["prompts"] / f"{name}.parquet", "prompt")
    ]

    def corpus(columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        known = None if columns is None else [name for name in columns if name in schema.names]
        return source.iter_batches(ROWS, columns=known)

    context = filters.FilterContext(
        evaluation_prompts=prompts,
        seed=job.seed,
        special_tokens=job.config.get("special_tokens", ()),
        earlier=lambda: _earlier(job),
        scratch=job.scratch,
        corpus=corpus,
        classifier=job.inputs.get("quality_classifier"),
        policy=job.inputs.get("policy"),
    )
    chain = filters.parse(join(job.config["filters"], job.runtime.get("filters")))
    memory = Pieces(job.scratch / "shards")
    passage = filters.run(source.iter_batches(ROWS), chain, context, memory)
    total = source.metadata.num_rows
    with (
        pq.ParquetWriter(job.out / "kept.parquet", schema, compression="zstd") as kept,
        pq.ParquetWriter(job.out / "dropped.parquet", filters.dropped_schema(schema), compression="zstd") as dropped,
    ):
        for part in passage:
            kept.write_batch(part.kept)
            dropped.write_batch(part.dropped)
            job.progress(passage.rows_in, total, "rows")
    figures = passage.figures()
    if not passage.rows_kept:
        name, number = Counter(figures["dropped"]).most_common(1)[0]
        raise EmptyStageError(
            f"filters: no sample is left of {total}; {name} dropped {number}. Loosen that filter, raise samples.k or "
            "samples.prompts, or look at what was sampled: the round's answers-samples is whole"
        )
    return {**figures, **judge_metrics(job.scratch)}


def _earlier(job: Job) -> Iterator[pa.RecordBatch]:
    for name in job.numbered("earlier"):
        with pq.ParquetFile(job.inputs[name] / "kept.parquet") as table:
            yield from table.iter_batches(ROWS, columns=["prompt", "completion"])
