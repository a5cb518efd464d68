"""benchmarks/harness.py at its smallest size: our engine and lm-eval's own model give the same answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.benchmarks import model

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_both_sides_are_timed_and_compared(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="needs posttrain[eval]")
    questions = tmp_path / "gsm8k.jsonl"
    rows = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(10, 16)]
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    asked = tmp_path / "ifeval.jsonl"
    row = {"key": 1, "prompt": "Say yes.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    asked.write_text(f"{json.dumps(row)}\n", "utf-8")
    words = [sys.executable, str(ROOT / "benchmarks" / "harness.py"), str(model(tmp_path / "model"))]
    words += ["--gsm8k", str(questions), "--ifeval", str(asked), "--equal", "4", "--timed", "2", "--new", "8"]
    done = subprocess.run([*words, "--batches", "1", "8"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("choices", "answers"):
        assert re.search(rf"\| {name} \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", done.stdout)
    for name, count in (("choices", 4), ("answers", 4), ("ifeval", 1)):
        assert re.search(rf"\| {name} \| {count} \| [\d.e+-]+ \| 0 \| 0 \|", done.stdout), done.stdout
