"""From sampled tokens to completions: stop strings, text, finish reasons. The same for every engine of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.engines.protocol import Completion, FinishReason

DECODE = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}


class StopStrings:
    """Finds stop strings in the last `window` tokens. `may_end`: the only tokens with which one can be complete."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        # Every token adds a byte or more and a character has up to 4: n characters are in the last 4 n tokens.
        self.window = 4 * max(len(text) for text in stop) + 4
        ids = range(len(tokenizer))
        last = {text[-1] for text in stop}
        if any(character.isspace() for character in last):  # some tokenizers drop a single token's spaces
            self.may_end = frozenset(ids)
            return
        texts = tokenizer.batch_decode([[an_id] for an_id in ids], **DECODE)
        broken = "\ufffd"  # part of a character: the rest may come from any neighbour
        self.may_end = frozenset(
            an_id for an_id, text in zip(ids, texts, strict=True) if broken in text or last.intersection(text)
        )

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the last tokens of an answer contain a stop string."""
        text = self.tokenizer.decode(list(tokens[-self.window :]), **DECODE)
        return any(part in text for part in self.stop)


def completions(
    tokenizer: Any,
    tokens: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    ended: Sequence[bool],
    stop: Sequence[str],
) -> list[Completion]:
    """Completions from token rows; `ended` says which rows an end token closed (the token is not in the row)."""
    texts = tokenizer.batch_decode([list(row) for row in tokens], **DECODE)
    made: list[Completion] = []
    for row, row_logprobs, row_ended, text in zip(tokens, logprobs, ended, texts, strict=True):
        cut = min((at for at in (text.find(part) for part in stop) if at >= 0), default=-1)
        finish: FinishReason = "stop" if row_ended or cut >= 0 else "length"
        made.append(Completion(text if cut < 0 else text[:cut], tuple(row), finish, tuple(row_logprobs)))
    return made
