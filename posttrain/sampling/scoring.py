"""A reward model's score of completions, batches sorted by length."""

from __future__ import annotations

from typing import Any

import torch

_TOKENS = 16384


def score(
    model: Any, tokenizer: Any, prompts: list[list[int]], completions: list[list[list[int]]]
) -> list[list[float]]:
    """The logit of a sequence-classification model for each completion of each prompt."""
    rows = [(i, j, prompt + answer) for i, prompt in enumerate(prompts) for j, answer in enumerate(completions[i])]
    rows.sort(key=lambda row: len(row[2]))
    result: list[list[float]] = [[0.0] * len(answers) for answers in completions]
    pad = tokenizer.pad_token_id
    start = 0
    while start < len(rows):
        stop = start + max(1, _TOKENS // len(rows[start][2]))
        batch = rows[start:stop]
        width = max(len(ids) for _, _, ids in batch)
        ids = torch.tensor([ids + [pad] * (width - len(ids)) for _, _, ids in batch], device=model.device)
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for _, _, ids in batch], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        for (i, j, _), logit in zip(batch, logits, strict=True):
            result[i][j] = logit
        start = stop
    return result
