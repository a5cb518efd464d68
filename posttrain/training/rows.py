"""Tables of messages become data sets of token ids, in the columns that TRL's trainers take as already prepared.

Tokenizing is ours because text of a user must never become a control token (`posttrain.chat`), and because what does
not fit is counted here, never cut in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from posttrain.chat import render_answers

IGNORED = -100  # the label of a token that is not trained on


def sft_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], max_length: int | None
) -> tuple[Dataset, int]:
    """Rows with `prompt` and `completion` as `input_ids` and `labels` (the prompt masked), and how many did not fit."""
    prepared = []
    for row in rows:
        prompt, (answer,) = render_answers(tokenizer, row["prompt"], [row["completion"][-1]["content"]])
        ids = prompt + answer
        if max_length is None or len(ids) <= max_length:
            prepared.append({"input_ids": ids, "labels": [IGNORED] * len(prompt) + answer, "length": len(ids)})
    return Dataset.from_list(prepared), len(rows) - len(prepared)


def pair_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], max_length: int | None, whole: bool
) -> tuple[Dataset, int]:
    """Rows with `prompt`, `chosen`, `rejected` as token ids, and how many were too long.

    `whole`: `chosen_ids` and `rejected_ids` begin with the prompt (reward model); else `prompt_ids` stands apart (DPO).
    """
    prepared = []
    for row in rows:
        answers = [row[side][-1]["content"] for side in ("chosen", "rejected")]
        prompt, (chosen, rejected) = render_answers(tokenizer, row["prompt"], answers)
        length = len(prompt) + max(len(chosen), len(rejected))
        if max_length is not None and length > max_length:
            continue
        if whole:
            prepared.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected, "length": length})
        else:
            prepared.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "length": length})
    return Dataset.from_list(prepared), len(rows) - len(prepared)
