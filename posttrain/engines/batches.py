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
