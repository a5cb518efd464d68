"""Batches of texts of similar length, so that there is little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Batches of the indices of texts of these lengths, without empty ones: each of one text, or of at most `most`
    tokens, padding included. The longest come first, since too little memory then shows at once."""
    order = sorted((at for at, length in enumerate(lengths) if length), key=lambda at: lengths[at])
    while order:
        batch = [order.pop()]
        while order and (len(batch) + 1) * lengths[batch[0]] <= most:
            batch.append(order.pop())
        yield batch


def of_prompts(
    prompts: Sequence[int], answers: Sequence[int], most: int, most_answers: int | None = None
) -> Iterator[list[int]]:
    """Batches of the indices of prompts, those of like length together, of at most `most` tokens or of one prompt.

    `prompts`: tokens of each; `answers`: of all its answers, of which a batch has at most `most_answers`. A prompt
    without any is in no batch.
    """
    batch: list[int] = []
    tokens = of_answers = 0
    for at in sorted((at for at, size in enumerate(answers) if size), key=lambda at: prompts[at]):
        more = prompts[at] + answers[at]
        if batch and (tokens + more > most or (most_answers is not None and of_answers + answers[at] > most_answers)):
            yield batch
            batch, tokens, of_answers = [], 0, 0
        batch.append(at)
        tokens, of_answers = tokens + more, of_answers + answers[at]
    if batch:
        yield batch
