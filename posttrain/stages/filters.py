"""Runs the recipe's filters over the scored candidates: kept rows go on to SFT, dropped ones stay with the reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from posttrain import filters
from posttrain.errors import EmptyStageError
from posttrain.shards import Pieces
from posttrain.stages import Job


def run(job: Job) -> dict[str, Any]:
    """Inputs: scored, prompts. Config: filters. Writes kept.parquet and dropped.parquet.

    The prompts of dev and held-out are in the filters' context, whatever the recipe names.

    Raises:
        EmptyStageError: no row is left; the message names the filter that took most.
    """
    source = pq.ParquetFile(job.inputs["scored"] / "scored.parquet")
    prompts = [
        filters.message_text(row)
        for name in ("dev", "heldout")
        for row in pq.read_table(job.inputs["prompts"] / f"{name}.parquet")["prompt"].to_pylist()
    ]
    context = filters.FilterContext(evaluation_prompts=prompts, seed=job.seed)
    memory = Pieces(job.scratch / "shards")
    passage = filters.run(source.iter_batches(8192), filters.parse(job.config["filters"]), context, memory)
    total = source.metadata.num_rows
    schema = source.schema_arrow
    with (
        pq.ParquetWriter(job.out / "kept.parquet", schema, compression="zstd") as kept,
        pq.ParquetWriter(job.out / "dropped.parquet", filters.dropped_schema(schema), compression="zstd") as dropped,
    ):
        for part in passage:
            kept.write_batch(part.kept)
            dropped.write_batch(part.dropped)
            job.progress(passage.rows_in, total, "rows")
    reasons: Counter[str] = Counter()
    for count in passage.counts:
        for reason, number in count.reasons.items():
            reasons[f"{count.filter}: {reason}"] += number
    if not passage.rows_kept:
        name, number = reasons.most_common(1)[0]
        raise EmptyStageError(
            f"filters: no sample is left of {total}; {name} dropped {number}. Loosen that filter, raise samples.k or "
            "samples.prompts, or look at what was sampled: the samples artifact of this round is whole"
        )
    return {
        "rows": total,
        "kept": passage.rows_kept,
        "dropped": dict(reasons),
        "filters": [
            {
                "filter": count.filter,
                "in": count.rows_in,
                "out": count.rows_out,
                "rows_per_second": round(count.rows_in / count.seconds) if count.seconds else None,
            }
            for count in passage.counts
        ],
    }
