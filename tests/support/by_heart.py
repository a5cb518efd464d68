"""A tiny model that has learned texts by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.interrupted import BASE

Text = tuple[Sequence[int], Sequence[int]]  # what is given, and what is learned to follow: token ids


def taught(folder: Path, texts: Callable[[Any], Sequence[Text]], times: int) -> Path:
    """The shipped base after a step on each text, so many times over. `texts`: made with its tokenizer."""
    torch.manual_seed(0)
    tokenizer, model = AutoTokenizer.from_pretrained(BASE), AutoModelForCausalLM.from_pretrained(BASE).train()
    steps = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rows = [
        (torch.tensor([[*given, *learned]]), torch.tensor([[*[-100] * len(given), *learned]]))
        for given, learned in texts(tokenizer)
    ]
    for _ in range(times):
        for ids, labels in rows:
            model(input_ids=ids, labels=labels).loss.backward()
            steps.step()
            steps.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
