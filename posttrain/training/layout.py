"""Batches of prompts with several responses each: packed (the prompt computed once) or separate (once per response)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

Tokens = Sequence[int]


class Span(NamedTuple):
    """The place of a response in the flattened sequences: its first token, its length, and the token before it."""

    before: int  # the prompt's last token, which predicts the response's first
    start: int
    length: int

    def last(self) -> int:
        """The index of the response's last token; for an empty one of the prompt's."""
        return self.start + self.length - 1 if self.length else self.before

    def predicted_at(self) -> list[int]:
        """For each token of the response, the index of the token that predicts it."""
        return [self.before, *range(self.start, self.start + self.length - 1)][: self.length]


class Layout(NamedTuple):
    """`inputs` of a model, `there` (bool, shaped like `input_ids`: False at padding), and the spans of each row's
    responses."""

    inputs: dict[str, torch.Tensor]
    there: torch.Tensor
    spans: list[list[Span]]


def laid_out(
    prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]], pad: int, *, pack: bool, additive: bool
) -> Layout:
    """`packed` rows if `pack` is set, else `separate` ones."""
    return packed(prompts, responses, pad, additive) if pack else separate(prompts, responses, pad)


def packed(prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]], pad: int, additive: bool) -> Layout:
    """One sequence per prompt, (B, L): its responses follow it, each with the positions that it would have alone, and
    attend to the prompt and themselves. So their logits are those of separate rows.

    `position_ids` (B, L); `attention_mask` (B, 1, L, L): bool, or, with `additive`, float32 of 0 and the lowest number
    (eager attention adds it).
    """
    longest = max(len(prompt) + sum(map(len, given)) for prompt, given in zip(prompts, responses, strict=True))
    ids = torch.full((len(prompts), longest), pad)
    position = torch.zeros_like(ids)
    segment = torch.full_like(ids, -1)  # 0: the prompt; 1, 2, …: a response; -1: padding
    spans: list[list[Span]] = []
    for number, (prompt, given) in enumerate(zip(prompts, responses, strict=True)):
        spans.append([])
        start = 0
        for which, tokens in enumerate([prompt, *given]):
            stop = start + len(tokens)
            first = len(prompt) if which else 0
            ids[number, start:stop] = torch.tensor(tokens)
            position[number, start:stop] = torch.arange(first, first + len(tokens))
            segment[number, start:stop] = which
            if which:
                spans[-1].append(Span(number * longest + first - 1, number * longest + start, len(tokens)))
            start = stop
    reads, read = segment[:, :, None], segment[:, None, :]
    mask = (((read == reads) | (read == 0)) & torch.ones(longest, longest, dtype=torch.bool).tril())[:, None]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    inputs = {"input_ids": ids, "position_ids": position, "attention_mask": mask}
    return Layout(inputs, segment >= 0, spans)


def separate(prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]], pad: int) -> Layout:
    """One sequence per response, (N, L), each after its prompt, with an `attention_mask` (N, L)."""
    texts = [[*prompt, *one] for prompt, given in zip(prompts, responses, strict=True) for one in given]
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), pad)
    mask = torch.zeros_like(ids)
    spans: list[list[Span]] = []
    at = 0
    for prompt, given in zip(prompts, responses, strict=True):
        spans.append([])
        for one in given:
            ids[at, : len(texts[at])] = torch.tensor(texts[at])
            mask[at, : len(texts[at])] = 1
            first = at * longest + len(prompt)
            spans[-1].append(Span(first - 1, first, len(one)))
            at += 1
    return Layout({"input_ids": ids, "attention_mask": mask}, mask.bool(), spans)
