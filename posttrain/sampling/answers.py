"""From sampled tokens to completions: stop strings, text, finish reasons. The same for every engine of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.records import Completion, FinishReason


def stopped(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether the last token completed one of the stop strings."""
    # Every token adds a byte or more and a character has up to 4: n characters are in the last 4 n tokens.
    window = 4 * max(len(text) for text in stop) + 4
    text = tokenizer.decode(list(tokens[-window:]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return any(part in text for part in stop)


def completions(
    tokenizer: Any,
    tokens: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    ended: Sequence[bool],
    stop: Sequence[str],
) -> list[Completion]:
    """Completions from token rows; `ended` says which rows an end token closed (the token is not in the row)."""
    texts = tokenizer.batch_decode(
        [list(row) for row in tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    made: list[Completion] = []
    for row, row_logprobs, row_ended, text in zip(tokens, logprobs, ended, texts, strict=True):
        cut = min((at for at in (text.find(part) for part in stop) if at >= 0), default=-1)
        finish: FinishReason = "stop" if row_ended or cut >= 0 else "length"
        made.append(Completion(text if cut < 0 else text[:cut], tuple(row), finish, tuple(row_logprobs)))
    return made
