"""Sampling K completions of each prompt: our engine against `generate(num_return_sequences=K)`.

    python benchmarks/sampling.py --sizes 1M 3M 150M --repeats 5 [--device cuda] [--json FILE]

Random Llama weights of some sizes. Both sides draw at temperature 1 without top-k or top-p, in one process, on one
thread, in turn; `generate` gets the batch size that was fastest for it in a search before. Lengths: `fixed` (every
completion runs to the maximum) and `geometric` (a share of the vocabulary counts as end tokens, so that the mean is
30 % of the maximum). Tokens are those sampled, end tokens included. Each figure is the median over the repeats. On a
GPU (the size 1B is for one) the table says the most memory that the allocator held beside the sides' models; row
counts at which `generate` does not fit are left out.

What this does not cover: a trained model's peaked distributions, with which samples that begin alike are computed as
one (random weights give none), stop strings.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from posttrain.engines.load import prepare
from posttrain.engines.protocol import Request, SamplingParams, completion_seed
from posttrain.engines.shared_prefix import SharedPrefixEngine


@dataclass(frozen=True)
class Size:
    """A Llama and the work given to it: `prompts` prompts of `prompt` tokens, K completions of up to `new` tokens.
    `kv_heads` None: as many as heads."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    vocab: int
    tied: bool
    prompts: int
    prompt: int
    k: int
    new: int
    kv_heads: int | None = None


SIZES = {
    "0.1M": Size(64, 128, 2, 4, 256, True, prompts=8, prompt=20, k=4, new=16),  # for a look whether all works
    "1M": Size(128, 352, 4, 4, 512, True, prompts=128, prompt=40, k=8, new=48),
    "3M": Size(192, 512, 6, 6, 2048, True, prompts=48, prompt=100, k=16, new=64),
    "150M": Size(768, 2048, 14, 12, 32000, False, prompts=8, prompt=128, k=16, new=48),
    # SmolLM2-135M's, with the short and the long prompts that its reward models score; not to be sampled from
    "135M-60": Size(576, 1536, 30, 9, 49152, True, prompts=16, prompt=60, k=8, new=300, kv_heads=3),
    "135M-500": Size(576, 1536, 30, 9, 49152, True, prompts=8, prompt=500, k=8, new=300, kv_heads=3),
    "1B": Size(2048, 8192, 16, 32, 32000, True, prompts=64, prompt=512, k=16, new=256, kv_heads=8),
}
GENERATE_ROWS = (64, 256, 1024)


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    size: str
    lengths: str
    side: str
    rows: int
    tokens: int
    cpu_s: float
    wall_s: float
    memory_mib: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.cpu_s


class NoTokenizer:
    """Decoding is not what is measured; `generate` does none either."""

    eos_token_id = pad_token_id = 0

    def batch_decode(self, rows: Sequence[Sequence[int]], **_: Any) -> list[str]:
        return [""] * len(rows)


def build(size: Size) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads or size.heads,
        tie_word_embeddings=size.tied,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def ends(size: Size, lengths: str) -> frozenset[int]:
    """End tokens with which a near-uniform model's lengths have a mean of 30 % of the maximum."""
    if lengths == "fixed":
        return frozenset([size.vocab])  # never drawn
    low, high = 1e-4, 1.0
    for _ in range(60):  # mean of min(geometric(p), new) = (1 - (1 - p)^new) / p
        p = math.sqrt(low * high)
        if (1 - (1 - p) ** size.new) / p > 0.3 * size.new:
            low = p
        else:
            high = p
    return frozenset(range(size.vocab - max(1, round(low * size.vocab)), size.vocab))


def ours(model: Any, dtype: str, device: str, size: Size, lengths: str, prompts: list[list[int]]) -> Callable[[], int]:
    loaded = prepare(model, NoTokenizer(), dtype, device)
    engine = SharedPrefixEngine(replace(loaded, eos_ids=ends(size, lengths)))
    requests = [
        Request(tuple(prompt), tuple(completion_seed(0, str(at), k) for k in range(size.k)))
        for at, prompt in enumerate(prompts)
    ]
    params = SamplingParams(temperature=1.0, max_new_tokens=size.new)

    def run() -> int:
        made = engine.generate(requests, params)
        return sum(len(one.tokens) + (one.finish == "stop") for answers in made for one in answers)

    return run


def theirs(
    model: Any, dtype: torch.dtype, device: str, size: Size, lengths: str, prompts: list[list[int]], rows: int
) -> Callable[[], int]:
    model = model.to(device=device, dtype=dtype)
    ending = sorted(ends(size, lengths))

    def run() -> int:
        tokens = 0
        for start in range(0, len(prompts), max(1, rows // size.k)):
            ids = torch.tensor(prompts[start : start + max(1, rows // size.k)], device=device)
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    num_return_sequences=size.k,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=size.new,
                    eos_token_id=ending,
                    pad_token_id=0,
                )[:, ids.shape[1] :]
            over = torch.isin(out, torch.tensor(ending, device=device))
            tokens += int((over.cumsum(1) - over.long() == 0).sum())
        return tokens

    return run


def timed(run: Callable[[], int], device: str) -> tuple[int, float, float]:
    if device != "cpu":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return tokens, time.process_time() - cpu, time.perf_counter() - wall


def measure(name: str, lengths: str, device: str, repeats: int) -> list[Figure]:
    """Figures of every side, measured in turn."""
    size = SIZES[name]
    draw = random.Random(0)
    prompts = [[draw.randrange(5, size.vocab) for _ in range(size.prompt)] for _ in range(size.prompts)]
    sides: dict[str, tuple[int, Callable[[], int]]] = {}
    for label, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        best = (0.0, 0)
        for rows in GENERATE_ROWS:
            if rows <= size.prompts * size.k or rows == GENERATE_ROWS[0]:
                try:
                    tokens, cpu, wall = timed(theirs(build(size), dtype, device, size, lengths, prompts, rows), device)
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    continue
                best = max(best, (tokens / (cpu if device == "cpu" else wall), rows))
        sides[f"generate {label}"] = best[1], theirs(build(size), dtype, device, size, lengths, prompts, best[1])
        sides[f"ours {label}"] = 0, ours(build(size), label, device, size, lengths, prompts)
    taken: dict[str, list[tuple[int, float, float]]] = {side: [] for side in sides}
    memory = dict.fromkeys(sides, 0.0)
    for _ in range(repeats):
        for side, (_, run) in sides.items():
            before = 0
            if device != "cpu":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            taken[side].append(timed(run, device))
            if device != "cpu":
                memory[side] = max(memory[side], (torch.cuda.max_memory_allocated() - before) / 2**20)
    return [
        Figure(
            name,
            lengths,
            side,
            rows,
            round(statistics.median(one[0] for one in taken[side])),
            statistics.median(one[1] for one in taken[side]),
            statistics.median(one[2] for one in taken[side]),
            memory[side],
        )
        for side, (rows, _) in sides.items()
    ]


def table(figures: Sequence[Figure], device: str) -> str:
    """Markdown. The ratio is to `generate` in float32 and in the same dtype, by CPU time (by wall time on a GPU)."""
    seconds = "cpu" if device == "cpu" else "wall"

    def rate(figure: Figure) -> float:
        return figure.tokens / (figure.cpu_s if device == "cpu" else figure.wall_s)

    rate_of = {(one.size, one.lengths, one.side): rate(one) for one in figures}
    lines = [
        f"| model | lengths | side | rows | tokens | CPU s | wall s | tokens / {seconds}-s | × generate float32 "
        "| × generate in the same dtype |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in figures:
        base = rate_of[one.size, one.lengths, "generate float32"]
        same = rate_of[one.size, one.lengths, f"generate {one.side.split()[1]}"]
        lines.append(
            f"| {one.size} | {one.lengths} | {one.side} | {one.rows or 'auto'} | {one.tokens} | {one.cpu_s:.2f} | "
            f"{one.wall_s:.2f} | {rate(one):,.0f} | {rate(one) / base:.2f} | {rate(one) / same:.2f} |"
            + (f" {one.memory_mib:,.0f} |" if device != "cpu" else "")
        )
    if device != "cpu":
        lines[0] += " peak memory, MiB |"
        lines[1] += " --- |"
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1M", "3M", "150M"])
    parser.add_argument("--lengths", nargs="+", choices=("fixed", "geometric"), default=["fixed", "geometric"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="also write the figures there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures = [
        figure
        for size in given.sizes
        for lengths in given.lengths
        for figure in measure(size, lengths, given.device, given.repeats)
    ]
    print(table(figures, given.device))
    if given.device != "cpu":
        print(torch.cuda.get_device_name())
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump([asdict(figure) for figure in figures], file, indent=1)


if __name__ == "__main__":
    main()
