"""Sampling a pretrained model: our engine against `generate(num_return_sequences=K)`, and against the machine itself.

    python benchmarks/real_sampling.py MODEL PROMPTS.jsonl [--prompts 32] [--k 8] [--new 128] [--repeats 1]

MODEL is a folder; each line of PROMPTS has a `prompt`, put into the model's chat template where it has one. One thread,
CPU time, temperature 1. End tokens are ignored on both sides, so both make the same number of tokens. `generate` gets
the batch (1, 4, 8, 16 or 32 prompts) and the type at which it was fastest on a fourth of the tokens.

The floor is the time of the products alone: each weight's own measured rate, at the better of 128 and 256 rows, for all
tokens that are sampled and, without the output layer, those of the prompts once. Attention, norms, embedding, sampling
and Python are not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.engines.fast_linear import Product
from posttrain.engines.load import load
from posttrain.engines.plain import PlainEngine
from posttrain.engines.precision import linear_shapes, seconds
from posttrain.engines.protocol import Request, SamplingParams, completion_seed
from posttrain.engines.shared_prefix import SharedPrefixEngine

BATCHES = (1, 4, 8, 16, 32)


@dataclass(frozen=True)
class Figure:
    side: str
    tokens: int
    cpu_s: float
    floor_s: float  # 0: none was taken

    @property
    def rate(self) -> float:
        return self.tokens / self.cpu_s


def prompts_of(file: Path, tokenizer: Any, count: int, longest: int) -> list[list[int]]:
    """Token ids of the first prompts of at most so many tokens."""
    found: list[list[int]] = []
    for line in file.read_text("utf-8").splitlines():
        text = json.loads(line)["prompt"]
        if tokenizer.chat_template:
            message = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            ids = tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = tokenizer.encode(text)
        if len(ids) <= longest:
            found.append(ids)
        if len(found) == count:
            return found
    raise SystemExit(f"{file} has only {len(found)} prompts of at most {longest} tokens")


def floor(shapes: Mapping[tuple[int, int], int], tokens: int, dtype: str) -> float:
    """Seconds of the products alone, for so many tokens."""
    spent = 0.0
    for (out, width), count in shapes.items():
        # The rate of the rows at which it is highest: a floor that flatters nobody.
        per_row = min(_product_seconds(out, width, dtype, rows) / rows for rows in (128, 256))
        spent += count * per_row * tokens
    return spent


def _product_seconds(out: int, width: int, dtype: str, rows: int) -> float:
    product, x = Product(torch.randn(out, width), None, getattr(torch, dtype)), torch.randn(rows, width)
    return seconds(lambda: product(x), 0.05)


def ours(folder: Path, dtype: str, prompts: Sequence[Sequence[int]], k: int, new: int) -> tuple[str, Callable[[], int]]:
    loaded = replace(load(folder, dtype, "cpu"), eos_ids=frozenset([2**31 - 1]))  # never drawn
    engine: Any = SharedPrefixEngine(loaded)
    requests = [
        Request(tuple(prompt), tuple(completion_seed(0, str(at), one) for one in range(k)))
        for at, prompt in enumerate(prompts)
    ]

    def run() -> int:
        made = engine.generate(requests, SamplingParams(1.0, new))
        return sum(len(one.tokens) for answers in made for one in answers)

    how = "plain" if isinstance(engine, PlainEngine) else type(engine.decoder).__name__
    return f"ours {dtype} ({how})", run


def theirs(model: Any, pad: int, prompts: Sequence[Sequence[int]], k: int, new: int, batch: int) -> Callable[[], int]:
    """`batch` prompts at a time, sorted by length, padded on the left."""
    ordered = sorted(prompts, key=len)

    def run() -> int:
        made = 0
        for start in range(0, len(ordered), batch):
            some = ordered[start : start + batch]
            width = max(map(len, some))
            ids = torch.tensor([[pad] * (width - len(one)) + list(one) for one in some])
            mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in some])
            with torch.inference_mode():
                out = model.generate(
                    ids,
                    attention_mask=mask,
                    num_return_sequences=k,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=new,
                    min_new_tokens=new,
                    pad_token_id=pad,
                )
            made += out[:, width:].numel()
        return made

    return run


def timed(run: Callable[[], int]) -> tuple[int, float]:
    begun = time.process_time()
    tokens = run()
    return tokens, time.process_time() - begun


def best_of_generate(
    folder: Path, pad: int, prompts: Sequence[Sequence[int]], k: int, new: int
) -> tuple[str, Callable[[], int]]:
    found: list[tuple[float, str, Callable[[], int]]] = []
    rates: dict[int, float] = {}
    for dtype in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        for batch in (one for one in BATCHES if one <= len(prompts)):
            few = list(prompts)[: max(batch, len(prompts) // 4)]
            tokens, spent = timed(theirs(model, pad, few, k, max(1, new // 4), batch))
            print(f"generate {dtype}, {batch} prompts at once: {tokens / spent:.0f} tokens / s", flush=True)
            whole = theirs(model, pad, prompts, k, new, batch)
            found.append((tokens / spent, f"generate {dtype}, {batch} prompts at once", whole))
            if tokens / spent < rates.setdefault(batch, tokens / spent) / 2:
                break  # a CPU that only emulates bfloat16: eight times slower, at every batch
    _, name, run = max(found, key=lambda one: one[0])
    return name, run


def measure(given: argparse.Namespace) -> list[Figure]:
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    prompts = prompts_of(given.file, tokenizer, given.prompts, given.longest)
    with torch.device("meta"):
        shapes = linear_shapes(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(given.model)))
    sides = [best_of_generate(given.model, pad, prompts, given.k, given.new)]
    sides += [ours(given.model, dtype, prompts, given.k, given.new) for dtype in given.dtypes]
    tokens = len(prompts) * given.k * given.new
    head = {max(shapes): 1}
    body = {shape: count for shape, count in shapes.items() if shape not in head}
    of_prompts = sum(map(len, prompts))
    floors = [0.0, *(floor(body, tokens + of_prompts, one) + floor(head, tokens, one) for one in given.dtypes)]
    taken: dict[str, list[tuple[int, float]]] = {name: [] for name, _ in sides}
    for _ in range(given.repeats):
        for name, run in sides:
            taken[name].append(timed(run))
    return [
        Figure(name, some[0][0], statistics.median(spent for _, spent in some), low)
        for (name, some), low in zip(taken.items(), floors, strict=True)
    ]


def table(figures: Sequence[Figure]) -> str:
    lines = ["| side | tokens | CPU s | tokens / cpu-s | × generate | of the floor |", "| --- " * 6 + "|"]
    for one in figures:
        share = f"{one.floor_s / one.cpu_s:.2f}" if one.floor_s else "–"
        ratio = one.rate / figures[0].rate
        lines.append(f"| {one.side} | {one.tokens} | {one.cpu_s:.1f} | {one.rate:,.0f} | {ratio:.2f} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--longest", type=int, default=100, help="tokens of a prompt")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", help="also write the figures there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(given)
    print(table(figures))
    if given.json:
        Path(given.json).write_text(json.dumps([asdict(one) for one in figures], indent=1), "utf-8")


if __name__ == "__main__":
    main()
