"""What a faster type costs in right answers: the pass rate of samples, type by type, on the same prompts.

    python benchmarks/pass_rate.py MODEL [--prompts 120] [--k 8] [--new 200] [--dtypes float32 bfloat16 int8]

MODEL is a folder with a chat template. The engine answers the first dev prompts of recipes/instructions.yaml, K times
each at the recipe's temperature, 0.7, with the same seeds in every type; an answer counts when it follows all of its
constraints. The difference to the first type is paired by prompt; intervals are 95 % over prompts. One thread.
"""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.data.chat_template import render_prompt
from posttrain.engines.load import load
from posttrain.engines.protocol import Request, SamplingParams, completion_seed
from posttrain.engines.shared_prefix import SharedPrefixEngine
from posttrain.evaluation import statistics

ROOT = Path(__file__).parent.parent
TEMPERATURE = 0.7


def shares(given: argparse.Namespace, rows: Sequence[dict[str, Any]], dtype: str) -> tuple[list[float], float]:
    """Of each prompt the share of its answers that follow all constraints; and the mean tokens of an answer."""
    loaded = load(given.model, dtype, "cpu")
    tokenizer: Any = loaded.tokenizer
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    requests = [
        Request(
            tuple(render_prompt(tokenizer, prompt)),
            tuple(completion_seed(0, str(at), one) for one in range(given.k)),
        )
        for at, prompt in enumerate(prompts)
    ]
    made = SharedPrefixEngine(loaded).generate(requests, SamplingParams(TEMPERATURE, given.new))
    check = runpy.run_path(str(ROOT / "reward" / "instructions.py"))["all_followed"]
    found, tokens = list[float](), 0
    for row, prompt, answers in zip(rows, prompts, made, strict=True):
        texts = [one.text for one in answers]
        columns = {name: [row[name]] * len(texts) for name in ("instruction_id_list", "kwargs")}
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        verdicts = check(prompts=[prompt] * len(texts), completions=completions, **columns)
        found.append(sum(verdicts) / len(verdicts))
        tokens += sum(len(one.tokens) for one in answers)
    return found, tokens / (len(rows) * given.k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "int8"])
    given = parser.parse_args()
    print("| type | prompts | pass rate | difference to the first | mean tokens |\n| --- | ---: | ---: | ---: | ---: |")
    lines = (ROOT / "data" / "instructions.dev.jsonl").read_text("utf-8").splitlines()[: given.prompts]
    rows, first = [json.loads(line) for line in lines], list[float]()
    torch.set_num_threads(1)
    for dtype in given.dtypes:
        values, tokens = shares(given, rows, dtype)
        rate = statistics.in_words(statistics.mean(values))
        apart = statistics.in_words(statistics.paired_difference(values, first) if first else None)
        first = first or values
        print(f"| {dtype} | {len(values)} | {rate} | {apart} | {tokens:.0f} |", flush=True)


if __name__ == "__main__":
    main()
