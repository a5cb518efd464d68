"""SFT with packed rows at a size that fills a GPU: tokens a second, and the share of the machine's bf16 peak (MFU).

    python benchmarks/mfu.py [--size 1B] [--length 4096] [--batch 4] [--steps 20] [--repeats 5] [--json FILE]

Random Llama weights; rows of 10 % to 60 % of --length, packed into rows of at most --length, through the sft stage as
the loop runs it, on the GPU where there is one. Timed are the steps after the first three: loading, tokenizing and
saving are not in it. Tokens are those of the rows. Each repeat trains anew; figures are medians.

`peak` is the best of some bf16 products of 8192 x 8192 matrices (1024 x 1024 on a CPU, on one thread). Operations a
token: 6 for each parameter that multiplies, and 12 * layers * hidden * (half the mean row) for attention, which sees
its own row alone (PaLM, appendix B; causal, so half). What is computed twice to save memory counts once. Memory: the
most that the GPU's allocator held; on a CPU, the most that the process ever held.

What this does not cover: several GPUs, LoRA, DPO and reward models; attention other than torch's own (sdpa).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.utils import logging

from posttrain import load_recipe, shipped
from posttrain.job import Job
from posttrain.stages import run_stage

WARM_UP = 3


@dataclass(frozen=True)
class Size:
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int


SIZES = {
    "1M": Size(128, 352, 4, 4, 4, 640),
    "Qwen2.5-0.5B": Size(896, 4864, 24, 14, 2, 151936),  # without the biases of its attention
    "0.5B": Size(1024, 5120, 24, 16, 8, 32000),
    "1B": Size(2048, 8192, 16, 32, 8, 32000),
}


@dataclass(frozen=True)
class Figure:
    """One line of the table. `peak_flops` is the machine's, measured; `mean_row` in tokens."""

    device: str
    dtype: str
    size: str
    length: int
    batch: int
    mean_row: float
    parameters: int
    tokens_per_s: float
    flops_per_token: float
    peak_flops: float
    memory_mib: float

    @property
    def mfu(self) -> float:
        return self.tokens_per_s * self.flops_per_token / self.peak_flops


def flops_per_token(size: Size, parameters: int, mean_row: float) -> float:
    """Forward and backward. `parameters`: those in products; a tied embedding is one, as the head."""
    return 6 * parameters + 12 * size.layers * size.hidden * mean_row / 2


def peak(device: torch.device) -> float:
    """Floating-point operations a second of a bf16 product, the best of some tries."""
    n = 8192 if device.type == "cuda" else 1024
    left = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        _ = left @ left
        _wait(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - started))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def write_model(size: Size, folder: Path) -> int:
    """A random model with the tiny base's tokenizer; how many parameters it has."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(shipped.locate("data", "tiny-base"))
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(each.numel() for each in model.parameters())


def write_rows(folder: Path, length: int, tokens: int) -> float:
    """kept.parquet with about so many tokens, made of the quickstart's prompts; the mean tokens of a row."""
    tokenizer = AutoTokenizer.from_pretrained(shipped.locate("data", "tiny-base"))
    with shipped.locate("data", "word-problems.train.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["prompt"] for line in file]
    sizes = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    draw, rows, lengths = random.Random(0), [], []
    while sum(lengths) < tokens:
        wanted, parts, count = draw.uniform(0.1, 0.6) * length, [], 0
        while count < wanted:
            at = draw.randrange(len(texts))
            parts.append(texts[at])
            count += sizes[at]
        row = {"prompt": [{"role": "user", "content": parts[0]}]}
        rows.append({**row, "completion": [{"role": "assistant", "content": " ".join(parts)}]})
        lengths.append(count)
    common = {"prompt_id": "", "sample_index": 0, "score": 1.0}
    pq.write_table(pa.Table.from_pylist([{**row, **common} for row in rows]), folder / "kept.parquet")
    return statistics.mean(lengths)


def train(model: Path, kept: Path, length: int, batch: int, steps: int, fast: dict[str, Any]) -> float:
    """Tokens a second of the sft stage's steps after the first few. `fast`: what the stage `hardware` found."""
    settings = {"packing": "true", "max_length": length, "per_device_train_batch_size": batch, "max_steps": steps}
    settings |= {"logging_steps": steps, "save_steps": steps}  # once, at the end: with the tokens of all steps
    recipe = load_recipe("quickstart", [f"sft.{name}={value}" for name, value in settings.items()])
    assert recipe.sft
    section = {**recipe.sft.model_dump(mode="json"), "bf16": fast["training"]["name"] == "bfloat16"}
    named = {"dtype": "bfloat16", "lora": None, "attention": fast["attention"]["name"]}
    config = {"sft": section, "model": named}
    ended: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder, "out"), Path(folder, "scratch")
        out.mkdir()
        scratch.mkdir()
        inputs = {"model": model, "kept": kept}
        job = Job(config, inputs, out, scratch, 0, progress=lambda *_: ended.append(time.perf_counter()))
        made = run_stage("sft", job)
    if made["micro_batch"] != batch:
        raise SystemExit(f"--batch {batch} does not fit into memory; {made['micro_batch']} does")
    return (steps - WARM_UP) * made["last"]["num_tokens"] / steps / (ended[steps - 1] - ended[WARM_UP - 1])


def measure(name: str, length: int, batch: int, steps: int, repeats: int) -> Figure:
    device, size = torch.device("cuda" if torch.cuda.is_available() else "cpu"), SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        model, kept = Path(folder, "model"), Path(folder, "kept")
        kept.mkdir()
        parameters = write_model(size, model)
        mean_row = write_rows(kept, length, (steps + 1) * batch * length)
        top = peak(device)
        fast = run_stage("hardware", Job({}, {"model": model}, Path(folder), Path(folder), 0))
        rates = [train(model, kept, length, batch, steps, fast) for _ in range(repeats)]
    if device.type == "cuda":
        named, memory = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated() / 2**20
    else:
        named, memory = "CPU", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    operations = flops_per_token(size, parameters, mean_row)
    rate = statistics.median(rates)
    dtype = "bf16 autocast" if fast["training"]["name"] == "bfloat16" else "float32"
    return Figure(named, dtype, name, length, batch, mean_row, parameters, rate, operations, top, memory)


def table(figures: Sequence[Figure]) -> str:
    """Markdown."""
    lines = [
        "| device | dtype | model | parameters | packed rows | mean row | tokens / s | TFLOP/s | bf16 peak, TFLOP/s "
        "| MFU | peak memory, MiB |",
        "| --- " * 11 + "|",
    ]
    for one in figures:
        lines.append(
            f"| {one.device} | {one.dtype} | {one.size} | {one.parameters / 1e6:,.0f}M | {one.batch} × {one.length} | "
            f"{one.mean_row:.0f} | {one.tokens_per_s:,.0f} | {one.tokens_per_s * one.flops_per_token / 1e12:.3g} | "
            f"{one.peak_flops / 1e12:.3g} | {one.mfu:.1%} | {one.memory_mib:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1B" if torch.cuda.is_available() else "1M")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    if given.steps <= WARM_UP + 1:
        parser.error(f"the first {WARM_UP} steps are not timed: --steps must be more than {WARM_UP + 1}")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    figures = [measure(given.size, given.length, given.batch, given.steps, given.repeats)]
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
