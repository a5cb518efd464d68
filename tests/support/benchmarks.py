"""Task files of lm-evaluation-harness with a few questions of each kind, and a tiny model that answers them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.tiny_models import causal_lm, tokenizer

MULTIPLE_CHOICE = """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
GENERATED = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{right}}"
generation_kwargs: {until: ["e"], max_gen_toks: 24, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
PERPLEXITY = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""


def model(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """A tiny random model with its tokenizer; without `changes` its context is 256 tokens."""
    causal_lm(kind, **{"max_position_embeddings": 256, **changes}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def questions(count: int = 12) -> list[dict[str, Any]]:
    drawn, rows = random.Random(0), []
    for _ in range(count):
        first, second = drawn.randint(2, 20), drawn.randint(2, 20)
        choices = [f"{first + second + more} apples" for more in (0, 1, 2, 10)]
        drawn.shuffle(choices)
        rows.append(
            {
                "question": f"Tom has {first} apples and buys {second} more. How many has he?",
                "choices": choices,
                "label": choices.index(f"{first + second} apples"),
                "right": f"{first + second} apples",
            }
        )
    return rows


def task(folder: Path, name: str, body: str, rows: Sequence[dict[str, Any]] | None = None) -> Path:
    """A task file with its questions beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    data, file = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in (questions() if rows is None else rows)), "utf-8")
    source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    file.write_text(f"task: {name}\n{source}{body}", "utf-8")
    return file
