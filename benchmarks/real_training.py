"""Training a pretrained model: our three stages against TRL's trainers, and against the machine's products.

    python benchmarks/real_training.py MODEL PROMPTS.jsonl [--rows 8] [--micro 8] [--steps 3] [--full] [--json FILE]

MODEL is a folder with a chat template; each line of PROMPTS has a `prompt`. Answers have 30 to 250 tokens of other
prompts' text: what is in them costs nothing. All rows are one optimizer step, in micro-batches of at most --micro, LoRA
r 16 on all linear layers or, with --full, all weights. `TRL, defaults` is TRL's trainer with its own choices
(checkpointing, sdpa, rows as they come) in the type that is faster here; `TRL, tuned` has no checkpointing, the
attention that is faster here and its rows in the order of their lengths; `ours` is the stage's trainer.

One thread, CPU seconds of a step, the median without the first. In DPO a step has the reference's pass on its rows,
which ours makes before. Losses are those of the first and the last step; the preference loss alone, without Llama 3's
additions, since TRL's `sft` term is another mean. The peak is the best of some products of 1024 x 1024 in the type. Its
share counts 2 operations a weight and token forward and 2 backward (4 with --full), for prompts once a row, the output
layer at answers alone, and not attention.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from posttrain.config.training import TRAINED
from posttrain.job import Job
from posttrain.stages import dpo, reward_model, run_stage, sft
from posttrain.training.ranking import ranked_rows
from posttrain.training.rows import pair_rows, sft_rows
from posttrain.training.run import arguments, train
from posttrain.training.trainers import Llama3DPOTrainer

TRL: dict[str, tuple[Any, Any]] = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "reward_model": (RewardTrainer, RewardConfig),
}
STAGES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "sft": (sft, sft_rows),
    "dpo": (dpo, pair_rows),
    "reward_model": (reward_model, ranked_rows),
}
DEFAULTS, TUNED, OURS = "TRL, defaults", "TRL, tuned", "ours"


@dataclass(frozen=True)
class Figure:
    """`losses` are those of the steps, `flops` the operations of one, `peak` the machine's a second."""

    stage: str
    weights: str
    side: str
    cpu_s: float
    losses: list[float]
    flops: float
    peak: float


@dataclass(frozen=True)
class Work:
    model: Path
    rows: list[dict[str, Any]]
    micro: int
    steps: int
    full: bool
    dtype: str
    attention: str

    def fields(self) -> dict[str, Any]:
        return {
            "per_device_train_batch_size": self.micro,
            "gradient_accumulation_steps": len(self.rows) // self.micro,
            "num_train_epochs": self.steps,
            "learning_rate": 1e-5 if self.full else 1e-4,
            "logging_steps": 1,
            "bf16": self.dtype == "bfloat16",
        }


def rows_of(file: Path, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """Rows for all three stages, the longest first."""
    draw = random.Random(0)
    prompts = [json.loads(line)["prompt"] for line in file.read_text("utf-8").splitlines()]
    words = tokenizer.encode(" ".join(draw.sample(prompts, min(200, len(prompts)))), add_special_tokens=False)

    def answer() -> list[dict[str, str]]:
        length = draw.randint(30, 250)
        start = draw.randrange(len(words) - length)
        return [{"role": "assistant", "content": tokenizer.decode(words[start : start + length]).strip()}]

    rows = []
    for prompt in draw.sample(prompts, count):
        chosen = answer()
        row = {"prompt": [{"role": "user", "content": prompt}], "chosen": chosen, "rejected": answer()}
        rows.append({**row, "completion": chosen, "level": "", "score": 0.0})
    lengths = pair_rows(tokenizer, rows, None)[0]["length"]
    return [row for _, row in sorted(zip(lengths, rows, strict=True), key=lambda each: -each[0])]


class Watch(TrainerCallback):
    """The CPU seconds and the loss of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.thread_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.thread_time() - self._began)

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def ours(work: Work, stage: str, watch: Watch) -> float:
    """Trains with our trainer; seconds of the reference's pass."""
    extra = {"nll_weight": 0.0, "mask_format": False} if stage == "dpo" else {}
    section = TRAINED[stage].model_validate({**work.fields(), **extra})
    module, rows_from = STAGES[stage]
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    rows, _ = rows_from(tokenizer, work.rows, None)
    spent = [0.0]
    name = "_precompute_ref_logps"
    reference = getattr(Llama3DPOTrainer, name)

    def timed(*given: Any) -> Any:
        began = time.thread_time()
        made = reference(*given)
        spent[0] += time.thread_time() - began
        return made

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        out, scratch = Path(folder, "out"), Path(folder, "scratch")
        out.mkdir()
        scratch.mkdir()
        named = {"dtype": "float32", "lora": None if work.full else {"r": 16}, "attention": work.attention}
        job = Job({stage: section.model_dump(mode="json"), "model": named}, {"model": work.model}, out, scratch, 0)

        def make(args: Any) -> Any:
            set_seed(0)
            made = module.trainer(job, section, args, rows, tokenizer)
            made.add_callback(watch)
            return made

        setattr(Llama3DPOTrainer, name, timed)
        stack.callback(setattr, Llama3DPOTrainer, name, reference)
        train(stage, job, section, lambda: arguments(TRL[stage][1], section, job), make)
    return spent[0]


def theirs(work: Work, stage: str, tuned: bool, watch: Watch) -> float:
    """Trains with TRL's trainer on the rows as they are. What is set beside the fields makes it run here, quietly."""
    trainer_class, config_class = TRL[stage]
    fields, init = work.fields(), {"dtype": "float32"}
    if tuned:
        fields |= {"activation_checkpointing": False, "train_sampling_strategy": "sequential"}
        init["attn_implementation"] = work.attention
    names = ("prompt", "completion") if stage == "sft" else ("prompt", "chosen", "rejected")
    task = "SEQ_CLS" if stage == "reward_model" else "CAUSAL_LM"
    head = ["score"] if stage == "reward_model" else None
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task, modules_to_save=head)
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(
            **fields,
            output_dir=folder,
            use_cpu=True,
            model_init_kwargs=init,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        )
        set_seed(0)
        made = trainer_class(
            model=str(work.model),
            args=args,
            train_dataset=datasets.Dataset.from_list([{name: row[name] for name in names} for row in work.rows]),
            processing_class=AutoTokenizer.from_pretrained(work.model),
            peft_config=None if work.full else lora,
        )
        made.add_callback(watch)
        made.train()
    return 0.0


def flops(work: Work, stage: str) -> float:
    """Operations of a step that no side can do without."""
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(work.model))
    head = model.get_output_embeddings()
    layers = sum(each.weight.numel() for each in model.modules() if type(each) is torch.nn.Linear and each is not head)
    pairs = pair_rows(tokenizer, work.rows, None)[0].to_list()
    answers = sum(len(row["chosen_ids"]) + (0 if stage == "sft" else len(row["rejected_ids"])) for row in pairs)
    tokens = sum(len(row["prompt_ids"]) for row in pairs) + answers
    products = layers * tokens + (0 if stage == "reward_model" else head.weight.numel() * answers)
    return 2.0 * products * ((3 if work.full else 2) + (stage == "dpo"))


def peak(dtype: torch.dtype) -> float:
    """Operations a CPU second of a product, the best of some tries."""
    left, best = torch.randn(1024, 1024, dtype=dtype), 0.0
    for _ in range(20):
        began = time.thread_time()
        _ = left @ left
        best = max(best, 2 * 1024**3 / (time.thread_time() - began))
    return best


def measure(work: Work, stage: str, top: float) -> list[Figure]:
    figures, operations = [], flops(work, stage)
    weights = "all" if work.full else "LoRA"
    for side in (DEFAULTS, TUNED, OURS):
        watch = Watch()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # the trainers' logs
            before = ours(work, stage, watch) if side == OURS else theirs(work, stage, side == TUNED, watch)
        step = statistics.median(watch.seconds[1:]) + before
        figures.append(Figure(stage, weights, side, step, watch.losses, operations, top))
    return figures


def table(figures: Sequence[Figure]) -> str:
    """Markdown."""
    of = {(one.stage, one.weights, one.side): one.cpu_s for one in figures}
    lines = [
        "| stage | weights | side | CPU s a step | × TRL, defaults | × TRL, tuned | of the product peak "
        "| loss, first step | last |",
        "| --- " * 9 + "|",
    ]
    for one in figures:
        base, tuned = (of[one.stage, one.weights, side] for side in (DEFAULTS, TUNED))
        lines.append(
            f"| {one.stage} | {one.weights} | {one.side} | {one.cpu_s:.2f} | {base / one.cpu_s:.2f} "
            f"| {tuned / one.cpu_s:.2f} | {one.flops / one.cpu_s / one.peak:.1%} | {one.losses[0]:.4f} "
            f"| {one.losses[-1]:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="at least 2: the first is not timed")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--full", action="store_true", help="train all weights instead of LoRA adapters")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    if given.rows % given.micro:
        parser.error("--rows must be a multiple of --micro")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        fast = run_stage("hardware", Job({}, {"model": given.model}, Path(folder), Path(folder), 0))
    dtype, attention = fast["training"]["name"], fast["attention"]["name"]
    rows = rows_of(given.prompts, AutoTokenizer.from_pretrained(given.model), given.rows)
    work = Work(given.model, rows, given.micro, given.steps, given.full, dtype, attention)
    top = peak(getattr(torch, dtype))
    print(f"{dtype}, {attention}, peak {top / 1e9:.0f} GFLOP/s", flush=True)
    figures = []
    for stage in given.stages:
        figures += measure(work, stage, top)
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in figures], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
