"""How fast rules, duplicates and contamination are together, how that grows, and their memory.

    taskset -c 0 python benchmarks/filters.py                       # 20,000 to a million rows; --rows for others
    python benchmarks/filters.py --overlap TRAIN.jsonl TEST.jsonl   # what of one set stands in another, no timing

Rows are made up: about 60 words of prompt and answer together, drawn as English is (a Zipf law over 30,000 words), 10 %
near-duplicates with two words exchanged, 2 % exact ones, and 1 % prompts of the 1,319 evaluation prompts. They are
written to Parquet first, as the loop does; timed is what the loop's stage does: read in batches, filter, write what is
kept and what is dropped. Each size runs in a process of its own, whose peak memory is the largest it ever held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import filters
from posttrain.filters import FilterContext

CHAIN = [
    "format", "length", "residue", "repetition", "loop", "truncated", "emphasis", "language", "unsafe-words",
    "refusals", "exact-duplicates", "near-duplicates", "overlap",
]  # fmt: skip
SIZES = [20_000, 200_000, 1_000_000]
EVALUATED = 1_319  # prompts, as many as GSM8K's test set has
AT_ONCE = 8192  # rows in a batch, as in the loop
_PART = 50_000  # rows that are made at once
_ZIPF = np.cumsum(1 / np.arange(1, 30_001))
_SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]


@dataclass(frozen=True)
class Figure:
    rows: int
    kept: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    rows_per_second: dict[str, int]  # of each filter alone

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


def word(rank: int) -> str:
    """The more frequent the shorter, as in a language."""
    rank, last = divmod(rank, len(_SYLLABLES))
    return (word(rank - 1) if rank else "") + _SYLLABLES[last]


def texts(generator: np.random.Generator, count: int, low: int, high: int) -> list[str]:
    """Texts of `low` to `high` made-up words."""
    lengths = generator.integers(low, high + 1, count)
    ranks = np.searchsorted(_ZIPF, generator.random(lengths.sum()) * _ZIPF[-1])
    words = [word(rank) for rank in ranks]
    ends = np.cumsum(lengths)
    return [" ".join(words[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def corpus(path: Path, rows: int, seed: int = 0) -> list[str]:
    """Writes the rows; returns the evaluation prompts."""
    generator = np.random.default_rng(seed)
    evaluated = texts(generator, EVALUATED, 20, 40)
    chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("prompt_id", pa.string()), ("prompt", chat), ("completion", chat), ("finish", pa.string())])
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, rows, _PART):
            count = min(_PART, rows - start)
            prompts, answers = texts(generator, count, 20, 40), texts(generator, count, 20, 40)
            kinds = generator.random(count)
            for at in range(1, count):
                other = int(generator.integers(at))
                if kinds[at] < 0.02:
                    prompts[at], answers[at] = prompts[other], answers[other]
                elif kinds[at] < 0.12:
                    words = answers[other].split()
                    for place in generator.integers(len(words), size=2):
                        words[place] = "other"
                    prompts[at], answers[at] = prompts[other], " ".join(words)
                elif kinds[at] < 0.13:
                    prompts[at] = evaluated[other % EVALUATED]
            made = [
                {
                    "prompt_id": str(start + at),
                    "prompt": [{"role": "user", "content": prompts[at]}],
                    "completion": [{"role": "assistant", "content": answers[at]}],
                    "finish": "stop",
                }
                for at in range(count)
            ]
            file.write_table(pa.Table.from_pylist(made, schema))
    return evaluated


def measure(folder: Path) -> Figure:
    """Filters the rows in this folder, in this process."""
    source = pq.ParquetFile(folder / "rows.parquet")
    evaluated = json.loads((folder / "evaluated.json").read_text(encoding="utf-8"))
    started, cpu = time.perf_counter(), time.process_time()
    run = filters.run(
        source.iter_batches(AT_ONCE), filters.parse([{"use": name} for name in CHAIN]), FilterContext(evaluated)
    )
    schema = source.schema_arrow
    with (
        pq.ParquetWriter(folder / "kept.parquet", schema, compression="zstd") as kept,
        pq.ParquetWriter(folder / "dropped.parquet", filters.dropped_schema(schema), compression="zstd") as dropped,
    ):
        for part in run:
            kept.write_batch(part.kept)
            dropped.write_batch(part.dropped)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rates = {count.filter: round(count.rows_in / count.seconds) for count in run.counts}
    return Figure(run.rows_in, run.rows_kept, round(seconds, 2), round(cpu, 2), round(peak), rates)


def in_a_child(rows: int) -> Figure:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        evaluated = corpus(folder / "rows.parquet", rows)
        (folder / "evaluated.json").write_text(json.dumps(evaluated), encoding="utf-8")
        command = [sys.executable, __file__, "--measure", name]
        one_core = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=one_core)
    return Figure(**json.loads(done.stdout))


def table(figures: list[Figure]) -> str:
    lines = ["| rows | kept | s | CPU s | rows/s | peak MiB |", "| ---: | ---: | ---: | ---: | ---: | ---: |"]
    for one in figures:
        figure = f"{one.rows:,} | {one.kept:,} | {one.seconds:.1f} | {one.cpu_seconds:.1f}"
        lines.append(f"| {figure} | {one.rate:,.0f} | {one.peak_mib:,.0f} |")
    last = figures[-1]
    alone = ", ".join(f"{name} {rate:,}" for name, rate in last.rows_per_second.items())
    return "\n".join([*lines, "", f"Each filter alone, rows/s at {last.rows:,} rows: {alone}."])


def overlap(train: Path, test: Path, column: str) -> dict[str, Any]:
    """What of one set stands in another, by the filter as it is and by a lower threshold."""
    sets = [[json.loads(line)[column] for line in path.open(encoding="utf-8")] for path in (train, test)]
    found = {}
    rows = pa.table({"prompt": sets[0], "completion": [""] * len(sets[0])})
    for share in (0.5, 0.2):
        chain = filters.parse([{"use": "overlap", "max_share": share}])
        run = filters.run(rows.to_batches(), chain, FilterContext(sets[1]))
        lost = [row for part in run for row in part.dropped.to_pylist()]
        found[str(share)] = {
            "rows": len(sets[0]),
            "dropped": dict(run.counts[0].reasons),
            "prompts": [(round(row["figure"], 3), row["prompt"]) for row in lost],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", type=Path, help="Write the figures here.")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--overlap", type=Path, nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--column", default="question", help="The prompt's column, for --overlap.")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(asdict(measure(given.measure))))
        return
    if given.overlap:
        print(json.dumps(overlap(given.overlap[0], given.overlap[1], given.column), indent=1, ensure_ascii=False))
        return
    figures = [in_a_child(rows) for rows in given.rows]
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
