"""Training: our three stages against TRL's trainers as they come, on the same rows of a real run.

    python benchmarks/training.py --run runs/quickstart [--round 1] [--stages sft dpo] [--repeats 5] [--json FILE]

The rows, model folders and settings are those of a finished round of --run, which is only read; where there is no such
run, so many rounds of the quickstart are run there first, with what --set changes. `ours` is the stage itself on a Job,
from table to saved model. `TRL, defaults` is TRL's trainer on the same conversational rows with the recipe's fields
(learning rate, batch, epochs) and TRL's own choice for the rest; `TRL, tuned` the same with what its options offer a
CPU: no activation checkpointing, eager attention under bf16 autocast, and in SFT batches of like length (its DPO and
reward trainers cannot do that). The reward model trains for its epochs, without the recipe's `max_steps`, so that the
sides see the same rows.

Useful tokens are those of the rows, prompts included, once an epoch: no padding, and in DPO not the reference's pass.
Loading, tokenizing and saving are in the time; importing is not. One process, one thread, in turn; medians.

Losses are not the same number by nature: batches are put together in another order, and in DPO the NLL term is a mean
over tokens in TRL (`sft`) and over answers in ours. What this does not cover: GPUs, several processes, LoRA, packing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import torch
import transformers
from sampling import timed
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from posttrain import load_recipe, models, open_run, run_rounds
from posttrain.job import Job
from posttrain.stages import run_stage
from posttrain.training.rows import pair_rows, sft_rows

TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig),
    "reward_model": (RewardTrainer, RewardConfig),
    "dpo": (DPOTrainer, DPOConfig),
}
OURS, TUNED = "ours", "TRL, tuned"
SIDES = (OURS, "TRL, defaults", TUNED)


@dataclass(frozen=True)
class Figure:
    """One line of the table. `loss` is the mean over the training, as the trainer tells it."""

    stage: str
    side: str
    rows: int
    tokens: int
    cpu_s: float
    wall_s: float
    loss: float

    @property
    def rate(self) -> float:
        return self.tokens / self.cpu_s


@dataclass(frozen=True)
class Work:
    """What a stage of the run was given."""

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    rows: list[dict[str, Any]]
    tokens: int
    seed: int


def work(run: Path, number: int, stage: str) -> Work:
    """The stage's own inputs, and the same rows as TRL takes them."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    manifest = open_run(run).rounds[number].manifests[stage]
    keys = manifest["input_keys"]
    inputs = {role: run / "artifacts" / key for role, key in keys.items() if not key.startswith("base-")}
    inputs = {"model": models.resolve(recipe.model).path, **inputs}
    section = {**getattr(recipe, stage).model_dump(mode="json"), "bf16": manifest["config"][stage]["bf16"]}
    if stage == "reward_model":
        section.pop("max_steps", None)
    config = {stage: section, "model": manifest["config"]["model"]}
    tokenizer = AutoTokenizer.from_pretrained(inputs["model"])
    if stage == "sft":
        rows = pq.read_table(inputs["kept"] / "kept.parquet", columns=["prompt", "completion"]).to_pylist()
        lengths = sft_rows(tokenizer, rows, None)[0]["length"]
        tokens = sum(lengths)
    else:
        tables = [path / "pairs.parquet" for role, path in inputs.items() if role != "model"]
        pairs = [row for table in tables for row in pq.read_table(table).to_pylist() if row["split"] == "train"]
        rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in pairs]
        whole = pair_rows(tokenizer, rows, None)[0]
        tokens = sum(
            2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in whole.to_list()
        )
    return Work(stage, config, inputs, rows, round(tokens * section["num_train_epochs"]), manifest["config"]["seed"])


def ours(given: Work, losses: list[float]) -> Callable[[], int]:
    def run() -> int:
        with tempfile.TemporaryDirectory() as folder:
            out, scratch = Path(folder, "out"), Path(folder, "scratch")
            out.mkdir()
            scratch.mkdir()
            job = Job(config=given.config, inputs=given.inputs, out=out, scratch=scratch, seed=given.seed)
            losses.append(run_stage(given.stage, job)["loss"])
        return given.tokens

    return run


def trl(given: Work, tuned: bool, losses: list[float]) -> Callable[[], int]:
    """TRL's trainer on the rows as they are. What is set beside the recipe's fields makes it run here, and quietly."""
    trainer_class, config_class = TRAINERS[given.stage]
    section = given.config[given.stage]
    fields = {name: section[name] for name in section if name in config_class.__dataclass_fields__}
    if given.stage == "dpo":
        fields |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, section["nll_weight"]]}
    init = {"dtype": "float32"}
    if tuned:
        fields |= {"bf16": True, "activation_checkpointing": False}
        init["attn_implementation"] = "eager"
        if given.stage == "sft":
            fields["train_sampling_strategy"] = "group_by_length"

    def run() -> int:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            args = config_class(
                **fields,
                output_dir=folder,
                use_cpu=not torch.cuda.is_available(),
                model_init_kwargs=init,
                seed=given.seed,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = trainer_class(
                model=str(given.inputs["model"]),
                args=args,
                train_dataset=datasets.Dataset.from_list(given.rows),
                processing_class=AutoTokenizer.from_pretrained(given.inputs["model"]),
            )
            losses.append(trainer.train().training_loss)
            trainer.save_model(folder)
        return given.tokens

    return run


def measure(given: Work, repeats: int) -> list[Figure]:
    """Figures of every side, measured in turn."""
    losses: dict[str, list[float]] = {side: [] for side in SIDES}
    sides = {
        side: ours(given, losses[side]) if side == OURS else trl(given, side == TUNED, losses[side]) for side in SIDES
    }
    taken: dict[str, list[tuple[int, float, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, run in sides.items():
            gc.collect()
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # the trainers' logs
                taken[side].append(timed(run, "cpu"))
    return [
        Figure(
            given.stage,
            side,
            len(given.rows),
            given.tokens,
            statistics.median(one[1] for one in taken[side]),
            statistics.median(one[2] for one in taken[side]),
            statistics.median(losses[side]),
        )
        for side in SIDES
    ]


def table(figures: list[Figure]) -> str:
    """Markdown. Ratios are rates over those of `TRL, defaults` and `TRL, tuned`, by CPU time."""
    of = {(one.stage, one.side): one for one in figures}
    lines = [
        "| stage | side | rows | useful tokens | CPU s | wall s | tokens / CPU-s | × TRL, defaults | × TRL, tuned "
        "| loss | loss − TRL, defaults |",
        "| --- " * 11 + "|",
    ]
    for one in figures:
        base, tuned = of[one.stage, SIDES[1]], of[one.stage, TUNED]
        lines.append(
            f"| {one.stage} | {one.side} | {one.rows} | {one.tokens} | {one.cpu_s:.2f} | {one.wall_s:.2f} | "
            f"{one.rate:,.0f} | {one.rate / base.rate:.2f} | {one.rate / tuned.rate:.2f} | {one.loss:.4f} | "
            f"{one.loss - base.loss:+.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--stages", nargs="+", choices=TRAINERS, default=list(TRAINERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    if not (given.run / "run.json").exists():
        run_rounds(load_recipe("quickstart", given.settings), given.round, given.run)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL's use of transformers
    datasets.disable_progress_bars()
    datasets.disable_caching()  # no side may find its tokens ready
    figures = [
        figure
        for stage in given.stages
        for figure in measure(work(given.run.resolve(), given.round, stage), given.repeats)
    ]
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
