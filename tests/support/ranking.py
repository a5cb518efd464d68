"""Rows and scores of a tiny reward model."""

from __future__ import annotations

from typing import Any

import torch


def says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def pair(prompt: str, *responses: str, level: str | None = None) -> dict[str, Any]:
    """Responses from best to worst; of three, the first is the edited one."""
    *edited, chosen, rejected = responses
    return {
        "prompt": says("user", prompt),
        "chosen": says("assistant", chosen),
        "rejected": says("assistant", rejected),
        "edited": says("assistant", edited[0]) if edited else None,
        "level": level,
    }


PAIRS = [
    pair("3 + 4?", "Answer: 7", "I do not know", level="better"),
    pair("Say hello to Tom, please.", "Hello Tom!", "Hello!", "No.", level="significantly_better"),
    pair("Why?", "Because it is so.", "Well"),
]


def alone(model: Any, tok: Any, row: dict[str, Any]) -> list[float]:
    """The plain model's score of each response, best first, each in a row of its own, without padding."""
    scores = []
    for side in ("edited", "chosen", "rejected"):
        if row[side]:
            text = tok.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
            ids = tok.encode(text, add_special_tokens=False)
            with torch.no_grad():
                scores.append(model(input_ids=torch.tensor([ids])).logits.item())
    return scores
