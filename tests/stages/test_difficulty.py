"""The pass rate of prompts, by a policy that answers for real, and which of them are taken."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.messages import prompt_id
from posttrain.job import Job
from posttrain.stages import run_stage
from posttrain.stages.prompts import SCHEMA

BASE = Path(__file__).parents[2] / "data" / "tiny-base"
REWARD = '''"""Right is any answer to a prompt that asks for pencils."""


def pencils(prompts: list, completions: list, **columns: list) -> list:
    return [None if "note" in p[-1]["content"] else float("pencils" in p[-1]["content"]) for p in prompts]
'''
ASKED = [
    "Count 3 pencils.",
    "Count 3 hats.",
    "Write a note to Ann.",
    "Count 4 pencils.",
    "Count 4 hats.",
    "A note to Bo.",
]


def taken(folder: Path, wanted: float) -> tuple[list[tuple[str, float | None]], dict[str, Any]]:
    folder.mkdir()
    rows = [
        {"id": prompt_id(messages), "prompt": messages, "columns": json.dumps({}), "line": at}
        for at, messages in enumerate([{"role": "user", "content": text}] for text in ASKED)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "train.parquet")
    reward = folder / "pencils.py"
    reward.write_text(REWARD, encoding="utf-8")
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    asked = {
        "set": "train",
        "where": {},
        "take": {"seed": 0, "start": 0, "count": 6},
        "answers": {"k": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4},
        "tag": "",
        "greedy": False,
        "further": [],
        "system": None,
        "engine": {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 64},
    }
    inputs = {"prompts": folder, "policy": BASE}
    run_stage("answers", Job(asked, inputs, folder / "out", folder / "scratch", 0))
    config = {"wanted": wanted, "count": 3, "take": asked["take"], "rewards": [{"use": str(reward)}]}
    inputs = {"prompts": folder, "answers": folder / "out"}
    metrics = run_stage("difficulty", Job(config, inputs, folder / "out", folder / "scratch", 0))
    names = {row["id"]: text for row, text in zip(rows, ASKED, strict=True)}
    table = pq.read_table(folder / "out" / "taken.parquet").to_pylist()
    return [(names[row["prompt_id"]], row["pass_rate"]) for row in table], metrics


def test_those_nearest_to_the_wanted_pass_rate_are_taken_and_a_share_of_what_nobody_judges(tmp_path: Path) -> None:
    easy, metrics = taken(tmp_path / "easy", 1.0)
    assert {text for text, rate in easy if rate == 1.0} == {"Count 3 pencils.", "Count 4 pencils."}
    assert [rate for text, rate in easy if "ote" in text] == [None]
    assert metrics["pass_rate"] == {"pool": 0.5, "taken": 1.0}
    hard, metrics = taken(tmp_path / "hard", 0.0)
    assert {text for text, rate in hard if rate == 0.0} == {"Count 3 hats.", "Count 4 hats."}
    assert metrics["pass_rate"] == {"pool": 0.5, "taken": 0.0}
