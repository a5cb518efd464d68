"""Tokenizes tables of messages into data sets with the columns that TRL's trainers take as prepared.

Tokenizing is ours because a user's text must never become a control token (`posttrain.data.chat_template`), and because
rows that do not fit are dropped and counted, never truncated silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat_template import OTHER, Tails, ending, parts_of, render_answers, render_turns
from posttrain.data.messages import Message

IGNORED = -100  # the label of a token that is not trained on
# A prompt, an answer and another one, of token ids that every vocabulary has: what a stage is tried on (`examples`).
EXAMPLES = [([1, 2, 3], [2, 3], [3, 1, 2]), ([1, 2, 3], [2, 3, 1], [3, 1, 2])]


def sft_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], max_length: int | None
) -> tuple[Dataset, int]:
    """Rows with `prompt` and `completion` as `input_ids` and `labels`, and the number that did not fit.

    Labels are the assistant's text in the completion with its end token; the prompt is masked, and so are a user's
    turns within a completion.
    """
    prepared, rendered = [], Rendering(tokenizer)
    for row in rows:
        prompt, ((answer, parts),) = rendered(row["prompt"], [row["completion"]])
        ids = prompt + answer
        if max_length is None or len(ids) <= max_length:
            trained = [an_id if part != OTHER else IGNORED for an_id, part in zip(answer, parts, strict=True)]
            labels = [IGNORED] * len(prompt) + trained
            prepared.append({"input_ids": ids, "labels": labels, "length": len(ids), "score": row.get("score")})
    return Dataset.from_list(prepared), len(rows) - len(prepared)


def pair_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], max_length: int | None
) -> tuple[Dataset, int]:
    """Rows with `prompt`, `chosen`, `rejected` as token ids for DPO, and the number that were too long.

    `chosen_parts` and `rejected_parts`: the part that each token is (see `posttrain.data.chat_template.render_turns`).
    """
    prepared, rendered = [], Rendering(tokenizer)
    for row in rows:
        prompt, answers = rendered(row["prompt"], [row["chosen"], row["rejected"]])
        (chosen, chosen_parts), (rejected, rejected_parts) = answers
        if max_length is not None and len(prompt) + max(len(chosen), len(rejected)) > max_length:
            continue
        prepared.append(
            {
                "prompt_ids": prompt,
                "chosen_ids": chosen,
                "chosen_parts": chosen_parts,
                "rejected_ids": rejected,
                "rejected_parts": rejected_parts,
                "length": len(prompt) + len(chosen) + len(rejected),
            }
        )
    return Dataset.from_list(prepared), len(rows) - len(prepared)


class Rendering:
    """Renders prompts and answers to tokens. The template's text after an answer is determined once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ending: list[int] | None = None
        self._tails: Tails = {}

    def __call__(
        self, prompt: Sequence[Message], answers: Sequence[Sequence[Message]]
    ) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
        """The prompt's tokens, and for each answer its tokens and their parts."""
        if any(len(answer) > 1 for answer in answers):
            turns = [render_turns(self._tokenizer, prompt, answer) for answer in answers]
            return turns[0][0], [(ids, parts) for _, ids, parts in turns]
        if self._ending is None:
            self._ending = ending(self._tokenizer, prompt)
        texts = [answer[0]["content"] for answer in answers]
        prompt_ids, rendered = render_answers(self._tokenizer, prompt, texts, self._tails)
        return prompt_ids, [(ids, parts_of(ids, self._ending)) for ids in rendered]
