"""Every script of benchmarks/ runs at its smallest size, as a process of its own, and prints figures.

Their values are not checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.faults import REDUCED

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [path.stem for path in sorted((ROOT / "benchmarks").glob("*.py")) if '"__main__"' in path.read_text("utf-8")]
# They need lm-eval, or a model and files: tests/test_ifeval_agreement.py, tests/test_instructions_benchmark.py,
# tests/test_harness_benchmark.py.
ELSEWHERE = {"harness", "ifeval_agreement", "instructions"}
SECONDS = 1800  # for one command: a hang, also on a busy machine
NUMBER = r"[\d,]+(\.\d+)?(e-?\d+)?"
TABLE = re.compile(r"(<!-- ([\w.-]+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)  # of a page
# A round in seconds.
FEW = {
    **REDUCED,
    "engine.shard_tokens": "131072",
    "compute.workers": "1",
    "prompts.train.rows": ":80",
    "samples.prompts": "40",
    "sft.max_steps": "2",
    "dpo.max_steps": "2",
    "reward_model.max_steps": "2",
}
# The quickstart's data, from which a first round learns something.
FORECAST = "--set evaluate.k=2 --set prompts.heldout.rows=:300 --set prompts.dev.rows=:60 --set compute.workers=1"
SETTINGS = " ".join(f"--set '{key}={value}'" for key, value in FEW.items())


@dataclass(frozen=True)
class Smallest:
    """`options` of the commands that are run one after the other, beside a copy of docs/ with empty tables. `says`:
    what the last one prints, or writes to `page`. `short`: it takes a few seconds, so every run of the tests has it."""

    says: str
    options: tuple[str, ...] = ("",)
    page: str = ""
    short: bool = False


def cells(*names: str) -> str:
    """Rows of a Markdown table that begin with these cells and end in figures."""
    return ".*".join(rf"\| {re.escape(name)} \|[^\n]*{NUMBER}" for name in names)


SMALLEST = {
    "ablation": Smallest(
        cells("the loop, 1 rounds", "poisoned, no quality filters, 1 rounds", "good samples"),
        (
            f"--study filters --arms 'no quality filters' 'poisoned, no quality filters' --seeds 0 --n 1 --short 1 "
            f"--folder made {SETTINGS}",
            "--study filters --seeds 0 --n 1 --short 1 --folder made --table " + SETTINGS,
        ),
    ),
    "architectures": Smallest(r"\| `llama` \|( yes \|){6}", ("llama",)),
    "contamination": Smallest(rf'"recall": {NUMBER}', ("--rows 200",), short=True),
    "filter_quality": Smallest(
        cells("repetition", "overlap"),
        (f"--embed {ROOT}/data/tiny-base --page docs/duplicates.md", "--page docs/filters.md"),
        page="docs/filters.md",
    ),
    "filters": Smallest(cells("200"), ("--rows 200",), short=True),
    "first_steps": Smallest(rf"first-steps\.md: 7 commands, {NUMBER} s", ("--page docs/first-steps.md",)),
    "forecast": Smallest(
        rf'"error_line": {NUMBER}',
        (f"--recipes without-reward-model --seeds 0 --n 3 --folder made {FORECAST}",),
    ),
    "fuzz": Smallest(r"recipe\.yaml: 6 inputs in", ("--inputs 6",), short=True),
    "fuzz_models": Smallest(r"6 folders: \d ", ("--inputs 6",)),
    "fuzz_servers": Smallest("servers: 3 inputs, slowest", ("--inputs 3",)),
    "glued_trl": Smallest(
        cells("0–1", "all", "TRL, glued", "posttrain", "trl dpo"),
        (f"--n 1 --searched 4 --shards 1 --folder made {SETTINGS}",),
    ),
    "gpu": Smallest(cells("CPU", "reward_model", "dpo"), ("--size 1M --prompts 2 --k 2 --new 8 --folder made",)),
    "growth": Smallest(
        cells("as it is | samples", "prompt length × 8 | filters"), ("--prompts 12 --k 2 --workers 1 --repeats 1",)
    ),
    "kills": Smallest(r'"found_by_verify": [1-9]\d\d', ("--kills 1 --folder made", "--damage --folder made")),
    "loop": Smallest(
        cells("1 rounds", "outside stages", "answers samples, 1 worker", "scores, 1 worker"),
        (f"--n 1 --repeats 1 --folder made {SETTINGS}",),
    ),
    "mfu": Smallest(cells("CPU"), ("--size 1M --length 128 --batch 2 --steps 5 --repeats 1",)),
    "nodes": Smallest(
        "Two nodes sample",
        (f"{ROOT}/data/tiny-base --prompts 8 --new 16 --set model.lora=null --folder made",),
    ),
    "plan": Smallest(cells("seconds", "memory", "disk", "steps"), (f"--n 1 --repeats 1 --folder made {SETTINGS}",)),
    "on_policy": Smallest(
        cells("ours", "TRL, tuned"), ("--prompts 4 --group 2 --batch 4 --new 4 --repeats 1",), short=True
    ),
    "online_rounds": Smallest(
        cells("1 | DPO", "1 | GRPO", "1 | RLOO", "1 | both"),
        (
            "reasoning --n 1 --seeds 0 --folder made --prompts 32 --set samples.prompts=60 --set pairs.prompts=60 "
            "--set prompts.dev.rows=:40 --set prompts.heldout.rows=:40",
        ),
    ),
    "pass_rate": Smallest(
        cells("float32", "bfloat16"),
        (f"{ROOT}/data/tiny-base --prompts 2 --k 2 --new 8 --dtypes float32 bfloat16",),
        short=True,
    ),
    "poisoning": Smallest(r'"none": \{\s+"', (f"--n 1 --run made {SETTINGS}",)),
    "ranks": Smallest(cells("two, FSDP2"), (f"{ROOT}/data/tiny-base --length 64",)),
    "real_sampling": Smallest(
        cells("ours float32 (LeanDecoder)", "ours bfloat16 (LeanDecoder)"),
        (f"{ROOT}/data/tiny-base {ROOT}/data/word-problems.dev.jsonl --prompts 2 --k 2 --new 8",),
    ),
    "real_training": Smallest(
        cells("sft | LoRA | TRL, defaults", "dpo | LoRA | TRL, tuned", "reward_model | LoRA | ours"),
        (f"{ROOT}/data/tiny-base {ROOT}/data/word-problems.dev.jsonl --rows 2 --micro 2 --steps 2",),
    ),
    "reward_calls": Smallest(rf'"apart_ms": {NUMBER}', ("--repeats 1",), short=True),
    "safety": Smallest(rf'"share": {NUMBER}', (f"--n 1 --run made {SETTINGS}",)),
    "same_bits": Smallest(r"[0-9a-f]{64} policy\n.*[0-9a-f]{64} scores scored.parquet", ("--n 1",)),
    "sampling": Smallest(
        cells("0.1M | geometric | generate float32", "0.1M | geometric | ours bfloat16"),
        ("--sizes 0.1M --lengths geometric --repeats 1",),
    ),
    "sampling_precision": Smallest(
        cells("bfloat16"),
        (f"--model {ROOT}/data/tiny-base --texts {ROOT}/data/word-problems.dev.jsonl --rows 1 --dtypes bfloat16",),
    ),
    "scoring": Smallest(cells("0.1M | ours float32"), ("--sizes 0.1M --repeats 1",)),
    "scoring_precision": Smallest(
        cells("6"),
        (f"--model {ROOT}/data/tiny-base --pairs {ROOT}/data/edited-notes.jsonl --fit 6 --test 6",),
        short=True,
    ),
    "search": Smallest(cells("sampling", "beam", "mcts"), ("--prompts 8 --k 1 --tokens 120 --seeds 0",), short=True),
    "search_rounds": Smallest(
        cells("1 | search", "1 | more samples", "1 | neither"),
        (
            "--n 1 --seeds 0 --folder made --set samples.prompts=60 --set search.prompts=8 --set pairs.prompts=60 "
            "--set prompts.dev.rows=:40 --set prompts.heldout.rows=:40 --set compute.workers=1",
        ),
    ),
    "slips": Smallest(cells("likelihood"), ("--prompts 60 --seeds 0",), short=True),
    "tables": Smallest(
        cells("SIGKILLs", "found by `verify`", "hashes"), ("--docs docs",), page="docs/nothing-is-lost.md"
    ),
    "training": Smallest(
        cells("sft | ours", "reward_model | TRL, defaults", "dpo | TRL, tuned"), (f"--run made --repeats 1 {SETTINGS}",)
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=() if SMALLEST.get(one, Smallest("", short=True)).short else pytest.mark.long)
     for one in SCRIPTS if one not in ELSEWHERE],
)  # fmt: skip
def test_it_runs_at_its_smallest_size(name: str, tmp_path: Path) -> None:
    assert set(SMALLEST) | ELSEWHERE == set(SCRIPTS), "each script of benchmarks/ has its smallest size here"
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for page in (tmp_path / "docs").glob("*.md"):
        page.write_text(TABLE.sub(r"\1\3", page.read_text("utf-8")), encoding="utf-8")
    smallest, said = SMALLEST[name], ""
    for options in smallest.options:
        said = run(name, options, tmp_path)
    if smallest.page:
        said = (tmp_path / smallest.page).read_text("utf-8")
    assert re.search(smallest.says, said, re.DOTALL), said


def run(name: str, options: str, folder: Path) -> str:
    """What the script prints."""
    words = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *shlex.split(options)]
    process = subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    return said
