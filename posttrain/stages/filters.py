"""Runs the recipe's filters over the scored candidates: kept rows go on to SFT, dropped ones stay with the reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from posttrain import filters
from posttrain.errors import EmptyStageError
from posttrain.stages import Job


def run(job: Job) -> dict[str, Any]:
    """Inputs: scored, prompts. Config: filters; where one reads them, special_tokens.

    Writes kept.parquet and dropped.parquet.

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
    context = filters.FilterContext(
        evaluation_prompts=prompts, special_tokens=job.config.get("special_tokens", ()), seed=job.seed
    )
    passage = filters.run(source.iter_batches(8192), filters.parse(job.config["filters"]), context)
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
    figures = passage.figures()
    if not passage.rows_kept:
        name, number = Counter(figures["dropped"]).most_common(1)[0]
        raise EmptyStageError(
            f"filters: no sample is left of {total}; {name} dropped {number}. Loosen that filter, raise samples.k or "
            "samples.prompts, or look at what was sampled: the samples artifact of this round is whole"
        )
    return figures
