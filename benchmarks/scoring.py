"""Scoring K completions of each prompt with a reward model: ours against plain batches.

    python benchmarks/scoring.py --sizes 1M 3M --repeats 5 [--device cuda] [--json FILE]

Random Llama reward models. `as they come`: transformers' own forward on prompt + completion, padded, at the batch size
that was fastest for it in a search before; `sorted`: the same with batches sorted by length. Prompts of 75 to 125 % of
the size's length, completions of geometric length (mean 30 % of the maximum), none twice. One process, one thread, in
turn; medians over the repeats; the largest difference between scores is shown beside.

The floor, on a CPU, is the time of the layers' products alone, at each weight's own measured rate, for the tokens that
must be computed: each prompt once, and its completions. Attention, norms, embedding and Python are not in it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from real_sampling import floor
from sampling import SIZES, Size, timed
from transformers import AutoModelForSequenceClassification, LlamaConfig

from posttrain.engines.precision import linear_shapes
from posttrain.engines.reward_scorer import Scorer

BATCHES = (16, 64, 256)


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    size: str
    side: str
    batch: int | None
    completions: int
    cpu_s: float
    wall_s: float
    difference: float
    floor_s: float = 0.0  # 0: none was taken


def build(size: Size) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads or size.heads,
        max_position_embeddings=1024,
        pad_token_id=0,
    )
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config).eval()


def texts(size: Size) -> tuple[list[list[int]], list[list[list[int]]]]:
    draw = random.Random(0)

    def some(length: int) -> list[int]:
        return [draw.randrange(5, size.vocab) for _ in range(length)]

    def geometric() -> int:
        length = 1
        while length < size.new and draw.random() > 1 / (0.33 * size.new):
            length += 1
        return length

    prompts = [some(round(size.prompt * draw.uniform(0.75, 1.25))) for _ in range(size.prompts)]
    return prompts, [[some(geometric()) for _ in range(size.k)] for _ in prompts]


def plain(model: Any, whole: list[list[int]], batch: int, ordered: bool, into: list[float]) -> Callable[[], int]:
    """Whole texts in padded batches; the scores are written to `into`."""

    def run() -> int:
        order = list(range(len(whole)))
        if ordered:
            order.sort(key=lambda at: len(whole[at]))
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                longest = max(len(whole[at]) for at in chosen)
                ids = torch.tensor([whole[at] + [0] * (longest - len(whole[at])) for at in chosen]).to(model.device)
                mask = torch.tensor([[1] * len(whole[at]) + [0] * (longest - len(whole[at])) for at in chosen])
                out = model(input_ids=ids, attention_mask=mask.to(model.device)).logits[:, 0].tolist()
                for at, value in zip(chosen, out, strict=True):
                    into[at] = value
        return len(whole)

    return run


def measure(name: str, device: str, repeats: int) -> list[Figure]:
    """Figures of every side, measured in turn."""
    size = SIZES[name]
    prompts, completions = texts(size)
    whole = [prompt + one for prompt, some in zip(prompts, completions, strict=True) for one in some]
    sides: dict[str, tuple[int | None, list[float], Callable[[], int]]] = {}
    floors: dict[str, float] = {}
    for label, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = build(size).to(device=device, dtype=dtype)
        for way, ordered in (("as they come", False), ("sorted", True)):
            into = [0.0] * len(whole)
            tried = {batch: timed(plain(model, whole, batch, ordered, into), device) for batch in BATCHES}
            best = min(tried, key=lambda batch: tried[batch][1 if device == "cpu" else 2])
            sides[f"{way} {label}"] = best, into, plain(model, whole, best, ordered, into)
        scorer = Scorer(build(size), label, device)
        into = [0.0] * len(whole)

        def ours(scorer: Scorer = scorer, into: list[float] = into) -> int:
            into[:] = [value for some in scorer.score(prompts, completions) for value in some]
            return len(into)

        ours()
        sides[f"ours {label}"] = None, into, ours
        if device == "cpu":
            shapes = {shape: count for shape, count in linear_shapes(build(size)).items() if shape[0] > 1}
            tokens = sum(map(len, prompts)) + sum(len(one) for some in completions for one in some)
            floors[f"ours {label}"] = floor(shapes, tokens, label)
    taken: dict[str, list[tuple[int, float, float]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, (_, _, run) in sides.items():
            taken[side].append(timed(run, device))
    exact = sides["as they come float32"][1]
    return [
        Figure(
            name,
            side,
            batch,
            len(whole),
            statistics.median(one[1] for one in taken[side]),
            statistics.median(one[2] for one in taken[side]),
            max(abs(a - b) for a, b in zip(into, exact, strict=True)),
            floors.get(side, 0.0),
        )
        for side, (batch, into, _) in sides.items()
    ]


def table(figures: list[Figure], device: str) -> str:
    """Markdown. Ratios by CPU time, by wall time on a GPU."""

    def rate(one: Figure) -> float:
        return one.completions / (one.cpu_s if device == "cpu" else one.wall_s)

    rates = {(one.size, one.side): rate(one) for one in figures}
    lines = [
        "| model | side | batch | CPU s | wall s | completions / s | × as they come float32 | × same dtype | "
        "largest difference | of the floor |",
        "| --- " * 10 + "|",
    ]
    for one in figures:
        base, same = (rates[one.size, f"as they come {dtype}"] for dtype in ("float32", one.side.split()[-1]))
        lines.append(
            f"| {one.size} | {one.side} | {one.batch or 'auto'} | {one.cpu_s:.2f} | {one.wall_s:.2f} | "
            f"{rate(one):,.0f} | {rate(one) / base:.2f} | {rate(one) / same:.2f} | {one.difference:.1e} | "
            f"{f'{one.floor_s / one.cpu_s:.2f}' if one.floor_s else '–'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1M", "3M"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures = [figure for size in given.sizes for figure in measure(size, given.device, given.repeats)]
    print(table(figures, given.device))
    if given.json:
        given.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
