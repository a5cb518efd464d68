"""benchmarks/instructions.py and recipes/instructions.yaml at their smallest size, on an untrained model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_models import causal_lm, tokenizer

ROOT = Path(__file__).parents[1]
FEW = [
    "prompts.train.rows=:40",
    "prompts.dev.rows=:6",
    "prompts.heldout.rows=:6",
    "preferences.prompts=24",
    "preferences.levels={significantly_better: 0.75, better: 0.01, slightly_better: 0.001}",
    "samples.prompts=24",
    "samples.k=4",
    "samples.max_new_tokens=16",
    "filters=[{use: best-of-k}]",  # an untrained model follows nothing, and its answers read like nothing
    "pairs=null",
    "dpo=null",
    "sft.max_steps=1",
    "reward_model.max_steps=1",
    "evaluate.k=1",
    "promote=always",
]


@pytest.mark.long
def test_it_goes_on_where_it_was_stopped_and_writes_its_table(tmp_path: Path) -> None:
    model = tmp_path / "model"
    causal_lm("llama", vocab_size=len(tokenizer()), max_position_embeddings=1024).save_pretrained(model)
    tokenizer().save_pretrained(model)
    asked = {"instruction_id_list": ["punctuation:no_comma", "detectable_format:title"], "kwargs": [{}, {}]}
    files = {
        "ifeval": [{"key": at, "prompt": f"Say {at}. No commas. Give it a title.", **asked} for at in range(3)],
        "texts": [{"question": "How many?", "answer": "#### 3"}, {"question": "And now?", "answer": "#### 4"}],
        "code": [{"prompt": "def one():\n", "canonical_solution": "    return 1\n"}],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "instructions.py"),
        str(model),
        "--folder",
        str(tmp_path / "made"),
        "--results",
        str(tmp_path / "results"),
    ]
    command += ["--ifeval", str(tmp_path / "ifeval.jsonl"), "--texts"]
    command += [str(tmp_path / "texts.jsonl"), str(tmp_path / "code.jsonl"), "--seeds", "0", "--n", "1", "--new", "8"]
    for setting in FEW:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    log = tmp_path / "made" / "log"
    assert done.returncode == 0, done.stderr + (log.read_text("utf-8") if log.exists() else "")
    assert "| base |" in done.stdout and "| the loop, seed 0, round 1 |" in done.stdout
    assert "overlap one of IFEval's: 0" in done.stdout
    before = log.read_text("utf-8")
    again = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert again.stdout == done.stdout
    assert log.read_text("utf-8") == before  # nothing was run again
