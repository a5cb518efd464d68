"""A batch of completions, several of one prompt, as rows in which the prompt is computed once for some of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from posttrain.training.layout import laid_out

ROOM = 2  # times a prompt's length, for its completions in one row


def in_rows(texts: Sequence[tuple[Hashable, int, int]], packed: bool) -> list[list[int]]:
    """Which completions are computed in one row: those of one prompt that together have at most `ROOM` times its
    length. Attention is computed over whole rows, so that longer ones would cost more than the prompts that they spare.
    One a row unless `packed`. texts: of each the prompt, its length, and the completion's."""
    found, room = dict[Hashable, list[list[int]]](), dict[Hashable, int]()
    for at, (prompt, size, length) in enumerate(texts):
        rows = found.setdefault(prompt, [])
        if rows and packed and length <= room[prompt]:
            rows[-1].append(at)
            room[prompt] -= length
        else:
            rows.append([at])
            room[prompt] = ROOM * size - length
    return [row for rows in found.values() for row in rows]


def as_answers(
    input_ids: torch.Tensor, there: torch.Tensor, kept: int, pad: int, packed: bool, additive: bool
) -> tuple[torch.Tensor, dict[str, Any]]:
    """TRL's batch as `answers.head_at_answers` takes it, and the row of the batch that each answer is, (B,).

    input_ids, there (B, P + A): prompts padded on the left, completions on the right, A = `kept`. `additive`: see
    `layout.packed`.
    """
    texts = [
        (tuple(ids[:-kept][mask[:-kept]].tolist()), ids[-kept:][mask[-kept:]].tolist())
        for ids, mask in zip(input_ids.cpu(), there.cpu(), strict=True)
    ]
    rows = in_rows([(prompt, len(prompt), len(answer)) for prompt, answer in texts], packed)
    prompts, answers = [texts[row[0]][0] for row in rows], [[texts[at][1] for at in row] for row in rows]
    inputs, _, spans = laid_out(prompts, answers, pad, pack=packed, additive=additive)
    device, order = input_ids.device, torch.tensor([at for row in rows for at in row], device=input_ids.device)
    predicted_at = torch.zeros((len(order), kept), dtype=torch.long)
    for at, span in enumerate(span for row in spans for span in row):
        predicted_at[at, : span.length] = torch.tensor(span.predicted_at())
    return order, {
        "inputs": {name: value.to(device) for name, value in inputs.items()},
        "ids": input_ids[order, -kept:],
        "predicted_at": predicted_at.to(device),
        "trained": there[order, -kept:],
    }
