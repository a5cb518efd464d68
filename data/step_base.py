"""Trains the base model of step_problems.py from its messy corpus. Its card, with figures, is step-base/README.md.

    python data/step_base.py [FOLDER]     # default: step-base beside this file; twenty minutes on one core of a Zen 5

As tiny_base.py makes the quickstart's: the same tokenizer's kind, the same Llama of under a million parameters. In
float32, which every CPU has at speed. Everything is seeded: the same machine gives the same weights each time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from step_problems import LENGTHS, corpus, prompts
from tiny_base import BATCH, HERE, SEED, answers, batches, make_model, reward, save, train, train_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Row = Mapping[str, str]
Judge = Callable[..., list[float | None]]

STEPS = 2000
ANSWER = 45  # tokens of a usual answer
LONGEST = 96
K = 8

CARD = """---
license: apache-2.0
language: en
---
# step-base

A base model for step-problems: a Llama of {parameters:,} parameters, made for this project from nothing but
`data/step_problems.py`, whose answers work problems out step by step, misread two kinds of event more often than not,
and slip; no other data, no other model.

- **Made by** `python data/step_base.py`: seed {seed}, {steps:,} steps of {batch} texts, {tokens:,} tokens, float32.
- **Tokenizer**: as tiny-base's, {vocabulary} tokens of its own.
- **Licence**: Apache-2.0, as the repository.

Measured on the first {count} held-out prompts of each length (sampled: {k} answers to each, temperature 1):

| steps | greedy | pass@1 | pass@{k} | steps right before the first wrong one, sampled |
| --- | --- | --- | --- | --- |
{figures}
"""


def judged(judge: Judge, rows: Sequence[Row], given: Sequence[Sequence[str]]) -> list[list[float]]:
    """The scores of the texts given to each row."""
    found = []
    for row, texts in zip(rows, given, strict=True):
        asked = [{"role": "user", "content": row["prompt"]}]
        said = [[{"role": "assistant", "content": text}] for text in texts]
        columns = {name: [row[name]] * len(texts) for name in ("answer", "steps")}
        found.append([score or 0.0 for score in judge([asked] * len(texts), said, **columns)])
    return found


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int) -> list[str]:
    """A line of the card's table for each length."""
    correct, steps_right = (reward("step-problems", name) for name in ("correct", "steps_right"))
    found = []
    for length in LENGTHS:
        rows = [row for row in prompts("heldout") if len(row["steps"].split()) == length][:count]
        asked = [row["prompt"] for row in rows]
        greedy = answers(model, tokenizer, asked, longest=LONGEST)
        sampled = answers(model, tokenizer, asked, 1.0, K, longest=LONGEST)
        right = judged(correct, rows, sampled)
        values = (
            mean(map(mean, judged(correct, rows, greedy))),
            mean(map(mean, right)),
            mean(map(max, right)),
            mean(map(mean, judged(steps_right, rows, sampled))),
        )
        found.append(f"| {length} | {' | '.join(f'{value:.3f}' for value in values)} |")
        print(found[-1], flush=True)
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # another number of threads adds in another order, and the weights would differ
    tokenizer = train_tokenizer([text for pair in islice(corpus(SEED + 1), 20_000) for text in pair])
    model = make_model(tokenizer)
    made = batches(tokenizer, list(islice(corpus(SEED), STEPS * BATCH)))
    tokens = train(model, made, ANSWER, torch.float32)
    save(model, tokenizer, folder, LONGEST)
    card = CARD.format(
        parameters=model.num_parameters(),
        seed=SEED,
        steps=STEPS,
        batch=BATCH,
        tokens=tokens,
        vocabulary=len(tokenizer),
        count=200,
        k=K,
        figures="\n".join(measure(model, tokenizer, 200)),
    )
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "step-base")
