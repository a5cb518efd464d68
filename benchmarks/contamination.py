"""Speed, memory and recall of the stage that looks for a benchmark's questions in what was learned from.

    python benchmarks/contamination.py --rows 1000000 [--json FILE]

Rows of `--words` words, drawn by Zipf's law from 20,000, in the table that the stage reads; 1,319 questions of 50 words
(as many as GSM8K's test has), each tenth of them in one row word for word. Recall: of those, the ones whose every word
is reported as seen. Seconds: of one core. Memory: the peak of this process during the stage, less what it had before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.job import Job
from posttrain.stages import contamination
from posttrain.stages.benchmark import QUESTIONS

VOCABULARY, QUESTIONS_ASKED, LONG = 20_000, 1_319, 50
_ROWS = 10_000  # of a row group
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def texts(random: np.random.Generator, count: int, words: int) -> list[str]:
    weights = 1 / np.arange(1, VOCABULARY + 1)
    drawn = random.choice(VOCABULARY, (count, words), p=weights / weights.sum())
    return [" ".join(f"w{one}" for one in row) for row in drawn]


def write_rows(path: Path, count: int, words: int, to_plant: Sequence[str]) -> None:
    """Prompts and completions; texts are planted into the middle of some completions while there are any."""
    random, planted = np.random.default_rng(1), iter(to_plant)
    with pq.ParquetWriter(path, pa.schema([("prompt", _MESSAGES), ("completion", _MESSAGES)])) as writer:
        for start in range(0, count, _ROWS):
            rows = []
            for text in texts(random, min(_ROWS, count - start), words):
                middle = next(planted, "") if random.random() < 0.01 or count <= _ROWS else ""
                rows.append(
                    {
                        "prompt": [{"role": "user", "content": text[: len(text) // 3]}],
                        "completion": [{"role": "assistant", "content": f"{middle} {text[len(text) // 3 :]}"}],
                    }
                )
            writer.write_table(pa.Table.from_pylist(rows, schema=writer.schema))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked = texts(np.random.default_rng(0), QUESTIONS_ASKED, LONG)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in ("benchmark", "kept", "out", "scratch"):
            (folder / name).mkdir()
        scores = [float(at % 2) for at in range(len(asked))]
        table = pa.table({"task": ["planted"] * len(asked), "text": asked, "score": scores})
        pq.write_table(table, folder / "benchmark" / QUESTIONS)
        rows = (folder / "kept" / "kept.parquet", options.rows, options.words, asked[::10])
        writer = multiprocessing.get_context("spawn").Process(target=write_rows, args=rows)  # its memory is not ours
        writer.start()
        writer.join()
        inputs = {"benchmark_planted": folder / "benchmark", "kept": folder / "kept"}
        before, started = _peak(), time.process_time()
        contamination.run(Job({}, inputs, folder / "out", folder / "scratch", 0))
        seconds = time.process_time() - started
        shares = pq.read_table(folder / "out" / "planted.parquet")["share"].to_numpy()
    found: dict[str, Any] = {
        "rows": options.rows,
        "core_seconds": seconds,
        "rows_per_core_second": options.rows / seconds,
        "memory_mb": (_peak() - before) / 1e6,
        "recall": float((shares[::10] == 1).mean()),
        "others": float(np.delete(shares, np.s_[::10]).mean()),
    }
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
