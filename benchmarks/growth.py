"""How sampling, scoring and filters grow: prompts × 10, K × 4, prompts 8 times as long, beside what must be done.

    python benchmarks/growth.py [--prompts 700] [--k 8] [--workers 2] [--json FILE]

The quickstart's base and an untrained reward model on its prompts, through the loop's
own stages, one after the other, each case in a process of its own. Long prompts are 8 problems in a row, which the tiny
base answers in its own way, so `tokens` says how much was sampled. Times are those of the stages, libraries imported
before. Each case is run --repeats times, in turn; figures are medians.

Memory is the sum of proportional set sizes of the process and its children, read once a second and at each stage's end:
a peak of less than a second can be missed, and what a stage leaves behind (a loaded model) counts in the next, which in
a run is a process of its own. `imported` is what the libraries alone take.

The floor of a stage is the longer of two times, at the rates that a probe finds on this machine just before, on as many
cores: its floating-point operations (matrix products and attention; a prompt once for all its K, and what its
completions begin with alike once too: `distinct` tokens) at the rate of a bf16 product of 1024 × 1024, an fp32 one for
scoring; and its bytes (the keys and values that each such token attends to, a prompt's once for its K; tables in and
out) at the rate of a copy. Between it and the time lies all else: a model of
this size is so small that calls, not products, take the time. What this does not cover: larger models, GPUs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from measuring import proportional_mib, tree

from posttrain import shipped

STAGES = ("samples", "scores", "filters")


@dataclass(frozen=True)
class Case:
    name: str
    prompts: int
    k: int
    length: int  # problems in one prompt


@dataclass(frozen=True)
class Rates:
    """What one core of this machine does in a second."""

    bf16: float
    fp32: float
    copy: float


@dataclass(frozen=True)
class Figure:
    """One line of the table: a stage in a case. `tokens` are the sampled ones, `distinct` those after other tokens."""

    case: str
    stage: str
    prompts: int
    k: int
    prompt_tokens: int
    tokens: int
    distinct: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    imported_mib: float
    gflop: float
    gbyte: float
    floor_s: float


def probe() -> Rates:
    """The best of some tries, on one thread."""

    def best(run: Callable[[], Any], amount: float) -> float:
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        return amount / min(seconds)

    square = torch.randn(1024, 1024)
    half, wide = square.bfloat16(), torch.empty(1 << 28, dtype=torch.uint8)
    other = torch.zeros_like(wide)
    return Rates(
        best(lambda: half @ half, 2 * 1024**3),
        best(lambda: square @ square, 2 * 1024**3),
        best(lambda: other.copy_(wide), 2 * wide.numel()),  # read and written
    )


def write_prompts(case: Case, path: Path) -> None:
    with shipped.locate("data", "word-problems.train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    joined = [
        {**rows[at], "prompt": " ".join(rows[(at + more) % len(rows)]["prompt"] for more in range(case.length))}
        for at in range(case.prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in joined), encoding="utf-8")


def play(case: Case, folder: Path, workers: int, sender: Connection) -> None:
    """In a process of its own: the three stages. Tells what each took as it ends, and at last how much there was."""
    from transformers.utils import logging

    import posttrain.execution.preload  # noqa: F401 - not to be in the first stage's time
    from posttrain import load_recipe
    from posttrain.execution.artifact import Artifact
    from posttrain.execution.launcher import InProcess
    from posttrain.execution.progress import Silent
    from posttrain.execution.runner import Runner
    from posttrain.pipeline.stage_inputs import StageInputs
    from posttrain.storage.store import Store

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    write_prompts(case, folder / "prompts.jsonl")
    settings = [f"prompts.train.path={folder / 'prompts.jsonl'}", f"samples.k={case.k}", "samples.prompts=null"]
    recipe = load_recipe("quickstart", [*settings, "prompts.dev.rows=:200", "prompts.heldout.rows=:200"])
    store = Store(folder / "run")
    with store.session():
        runner = Runner(store, InProcess(), Silent(), workers, recipe)
        stages = StageInputs(recipe, runner)
        stages.begin(0)
        made: dict[str, Artifact] = {"prompts": stages.prompts()}
        runner.metrics(made["prompts"])
        stages.begin(1)
        reward_model = Artifact("reward-model", _reward_model(stages.base.path, folder / "reward-model"))
        sender.send("imported")
        calls = {
            "samples": lambda: stages.samples(made["prompts"], stages.base, None),
            "scores": lambda: stages.scores(made["samples"], reward_model),
            "filters": lambda: stages.filtering.filters(1, made["scores"], made["prompts"]),
        }
        for name in STAGES:
            wall, cpu = time.perf_counter(), _cpu()
            made[name] = calls[name]()
            runner.metrics(made[name])
            sender.send((name, time.perf_counter() - wall, _cpu() - cpu))
    sender.send(_amounts(made["prompts"].path, made["samples"].path, made["scores"].path, stages.base.path))


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _reward_model(base: Path, out: Path) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


def _amounts(prompts: Path, samples: Path, scores: Path, base: Path) -> dict[str, Any]:
    """Tokens, and the least operations and bytes of each stage."""
    import pyarrow.parquet as pq
    from transformers import AutoConfig, AutoTokenizer

    from posttrain.data.chat_template import render_prompt

    tokenizer, config = AutoTokenizer.from_pretrained(base), AutoConfig.from_pretrained(base)
    rows = pq.read_table(prompts / "train.parquet").to_pylist()
    lengths = {row["id"]: len(render_prompt(tokenizer, row["prompt"])) for row in rows}
    hidden, layers = config.hidden_size, config.num_hidden_layers
    body = layers * (4 * hidden * hidden + 3 * hidden * config.intermediate_size)
    read = pq.read_table(samples / "answers.parquet", columns=["prompt_id", "tokens"])
    answers: dict[str, set[tuple[int, ...]]] = {}
    tokens = 0
    for one, ids in zip(read["prompt_id"].to_pylist(), read["tokens"].to_pylist(), strict=True):
        tokens += len(ids)
        answers.setdefault(one, set()).update(tuple(ids[:end]) for end in range(1, len(ids) + 1))
    prompt_tokens, distinct = sum(lengths.values()), sum(map(len, answers.values()))
    own = sum(len(beginning) for some in answers.values() for beginning in some)  # what each attends to of its answer
    seen = own + sum(lengths[one] * len(some) for one, some in answers.items())
    seen += sum(p * p / 2 for p in lengths.values())
    flop = 2 * body * (prompt_tokens + distinct) + 4 * layers * hidden * seen
    longest = {one: max(map(len, some), default=0) for one, some in answers.items()}
    kept = own + sum(lengths[one] * n for one, n in longest.items())
    table = [pq.read_table(path).nbytes for path in (samples / "answers.parquet", scores / "scored.parquet")]
    return {
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "distinct": distinct,
        "flop": {"samples": flop + 2 * config.vocab_size * hidden * distinct, "scores": flop, "filters": 0.0},
        "bytes": {"samples": kept * layers * hidden * 2 * 2 + table[0], "scores": sum(table), "filters": 2 * table[1]},
    }


def run_case(case: Case, workers: int, rates: Rates) -> list[Figure]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    took: dict[str, tuple[float, float, float]] = {}
    imported, peak = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=play, args=(case, Path(folder), workers, sender))
        process.start()
        sender.close()
        assert process.pid
        while True:
            told = receiver.recv() if receiver.poll(1.0) else None  # EOFError: it has failed and said why
            if isinstance(told, dict):
                break
            peak = max(peak, proportional_mib(tree(process.pid)))
            if told == "imported":
                imported, peak = peak, 0.0
            elif told is not None:
                took[told[0]], peak = (told[1], told[2], peak), 0.0
        process.join()
    figures = []
    for stage, (wall, cpu, most) in took.items():
        flop, bytes_ = told["flop"][stage], told["bytes"][stage]
        product = rates.bf16 if stage == "samples" else rates.fp32
        floor = max(flop / product, bytes_ / rates.copy) / workers
        size = (case.prompts, case.k, told["prompt_tokens"], told["tokens"], told["distinct"])
        amounts = (flop / 1e9, bytes_ / 1e9, floor)
        figures.append(Figure(case.name, stage, *size, wall, cpu, most, imported, *amounts))
    return figures


def middle(runs: list[Figure]) -> Figure:
    """The medians of what was measured; the rest is the same in every run."""
    measured = {
        name: statistics.median(getattr(one, name) for one in runs)
        for name in ("wall_s", "cpu_s", "peak_mib", "imported_mib", "floor_s")
    }
    return Figure(**{**asdict(runs[0]), **measured})


def table(figures: list[Figure]) -> str:
    """Markdown. Ratios are to the same stage of the first case."""
    first = {one.stage: one for one in reversed(figures) if one.case == figures[0].case}
    lines = [
        "| case | stage | prompts × K | prompt tokens | sampled tokens | distinct | wall s | CPU s | × wall "
        "| peak MiB | imported MiB | GFLOP | GB | floor s | × floor |",
        "| --- " * 15 + "|",
    ]
    for one in figures:
        lines.append(
            f"| {one.case} | {one.stage} | {one.prompts} × {one.k} | {one.prompt_tokens} | {one.tokens} | "
            f"{one.distinct} | {one.wall_s:.2f} | {one.cpu_s:.2f} | {one.wall_s / first[one.stage].wall_s:.1f} | "
            f"{one.peak_mib:.0f} | {one.imported_mib:.0f} | {one.gflop:.1f} | {one.gbyte:.2f} | {one.floor_s:.3f} | "
            f"{one.wall_s / one.floor_s:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=700)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    if 10 * given.prompts > 7000:
        parser.error("there are 7,000 prompts: --prompts must be 700 or less")
    torch.set_num_threads(1)
    rates = probe()
    print(f"one core: {rates.bf16 / 1e9:.0f} GFLOP/s bf16, {rates.fp32 / 1e9:.0f} fp32, {rates.copy / 1e9:.1f} GB/s")
    cases = [
        Case("as it is", given.prompts, given.k, 1),
        Case("prompts × 10", 10 * given.prompts, given.k, 1),
        Case("K × 4", given.prompts, 4 * given.k, 1),
        Case("prompt length × 8", given.prompts, given.k, 8),
    ]
    taken: dict[str, list[list[Figure]]] = {case.name: [] for case in cases}
    for _ in range(given.repeats):
        for case in cases:
            taken[case.name].append(run_case(case, given.workers, rates))
    figures = [middle(list(runs)) for case in cases for runs in zip(*taken[case.name], strict=True)]
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
