"""On-policy training: completions by our engine against TRL's own generation, in TRL's GRPO trainer.

    python benchmarks/on_policy.py [MODEL] [--prompts 64] [--group 8] [--batch 64] [--new 48] [--repeats 3]

The quickstart's first prompts, the same for all, one epoch; the score of a completion is its length, so that nothing
but sampling and learning takes time. `ours` is the trainer of the stage `online`; `TRL, defaults` TRL's trainer with
the same batch, group, rate and length; `TRL, tuned` the same without activation checkpointing. CPU seconds of one
process and one thread, in turn; medians. `sampling` is what makes the completions, a copy of the weights for our engine
included; `stage` all of the training, without loading the model. Completions differ, since the random numbers do, so
seconds are given for a thousand tokens that were sampled. On a GPU, or with several processes: not covered.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from posttrain import shipped
from posttrain.config.online import Online
from posttrain.data.chat_template import render_prompt
from posttrain.job import Job
from posttrain.stages import online
from posttrain.training.run import arguments

SIDES = ("ours", "TRL, defaults", "TRL, tuned")


@dataclass(frozen=True)
class Figure:
    side: str
    tokens: int
    sampling_s: float
    stage_s: float


def timed(trainer: Any, method: str) -> list[float]:
    """CPU seconds of each call of a method of the trainer, from now on."""
    taken, real = list[float](), getattr(trainer, method)

    def call(*given: Any, **named: Any) -> Any:
        started = time.process_time()
        made = real(*given, **named)
        taken.append(time.process_time() - started)
        return made

    setattr(trainer, method, call)
    return taken


def figure(side: str, trainer: Any, method: str) -> Figure:
    taken, started = timed(trainer, method), time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    tokens = sum(count for count in trainer.lengths)
    return Figure(side, tokens, sum(taken), seconds)


def counted(trainer: Any) -> Any:
    """The trainer, which notes the tokens of its completions in `lengths`."""
    trainer.lengths, real = [], trainer._calculate_rewards

    def note(inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
        trainer.lengths.extend(len(one) for one in ids)
        return real(inputs, prompts, completions, ids)

    trainer._calculate_rewards = note
    return trainer


def ours(model: Path, rows: Dataset, section: Online, folder: Path) -> Figure:
    config = {"model": {"dtype": "float32", "lora": None}, "engine": {"dtype": "float32"}}
    job = Job(config, {"model": model}, folder / "out", folder / "scratch", 0)
    args = arguments(GRPOConfig, section, job, save_strategy="no")
    trainer = online.trainer(job, section, args, rows, AutoTokenizer.from_pretrained(model))
    return figure(SIDES[0], counted(trainer), "sampled")


def theirs(model: Path, rows: Dataset, section: Online, folder: Path, tuned: bool) -> Figure:
    def by_length(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [float(len(ids)) for ids in completion_ids]

    more: dict[str, Any] = {"gradient_checkpointing": False} if tuned else {}
    args = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        num_train_epochs=1,
        learning_rate=section.trl["learning_rate"],
        per_device_train_batch_size=section.batch,
        num_generations=section.group,
        max_completion_length=section.max_new_tokens,
        model_init_kwargs={"dtype": "float32"},
        **more,
    )
    trainer = GRPOTrainer(str(model), by_length, args=args, train_dataset=rows.select_columns("prompt"))
    return figure(SIDES[1 + tuned], counted(trainer), "_generate_single_turn")


def table(figures: list[Figure]) -> str:
    lines = [
        "| side | sampling, s for 1,000 tokens | stage | sampling / ours | stage / ours |",
        "| --- |" + " --- |" * 4,
    ]
    found = {}
    for side in dict.fromkeys(one.side for one in figures):
        own = [one for one in figures if one.side == side]
        found[side] = [
            statistics.median(1000 * getattr(one, name) / one.tokens for one in own)
            for name in ("sampling_s", "stage_s")
        ]
        sampling, stage = found[side]
        ratios = " | ".join(f"{mine / base:.1f}" for mine, base in zip(found[side], found[SIDES[0]], strict=True))
        lines.append(f"| {side} | {sampling:.2f} | {stage:.2f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=shipped.locate("data", "tiny-base"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    given = {"group": options.group, "max_new_tokens": options.new, "per_device_train_batch_size": options.batch}
    section = Online.model_validate({**given, "learning_rate": 2e-5, "num_train_epochs": 1, "bf16": False})
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lines = shipped.locate("data", "word-problems.train.jsonl").read_text("utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in islice(lines, options.prompts)]
    asked = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in prompts]
    rows = Dataset.from_list(
        [
            {"prompt_id": str(number), "prompt": one, "prompt_ids": render_prompt(tokenizer, one), "columns": "{}"}
            for number, one in enumerate(asked)
        ]
    )
    sides: list[Callable[[Path], Figure]] = [
        lambda folder: ours(options.model, rows, section, folder),
        lambda folder: theirs(options.model, rows, section, folder, tuned=False),
        lambda folder: theirs(options.model, rows, section, folder, tuned=True),
    ]
    figures = []
    for _ in range(options.repeats):
        for side in sides:
            with tempfile.TemporaryDirectory() as folder:
                figures.append(side(Path(folder)))
            gc.collect()
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in figures], indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
