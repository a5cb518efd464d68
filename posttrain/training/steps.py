"""The step reward model's training rows, loss and trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from datasets import Dataset
from trl import RewardTrainer

from posttrain.training.layout import separate
from posttrain.training.ranking import ending_rewards
from posttrain.training.sharding import ShardsOnCPU
from posttrain.training.trainers import TokenizedRows


def step_rows(answers: Sequence[Mapping[str, Any]], max_length: int | None) -> tuple[Dataset, int]:
    """Labelled answers (`prompt_ids`, `tokens`, `sizes`, `labels`) as rows, and the number that were too long.

    `completion_ids`: the answer up to its last labelled step; `ends`: of each labelled step that has a token, how many
    tokens there are to its end; `right`: 1.0 or 0.0 for each.
    """
    prepared, too_long = [], 0
    for one in answers:
        known = [(end, float(label)) for end, label in labelled_ends(one) if label is not None]
        if not known:
            continue
        longest = known[-1][0]
        length = len(one["prompt_ids"]) + longest
        if max_length is not None and length > max_length:
            too_long += 1
            continue
        ends, right = zip(*known, strict=True)
        row = {"prompt_ids": one["prompt_ids"], "completion_ids": one["tokens"][:longest], "length": length}
        prepared.append({**row, "ends": list(ends), "right": list(right)})
    return Dataset.from_list(prepared), too_long


def labelled_ends(answer: Mapping[str, Any]) -> list[tuple[int, int | None]]:
    """Of each step that has a token how many tokens there are to its end, and its label; none of an answer whose wrong
    step has no token. answer: a row of STEP_LABELS."""
    steps = list(zip(accumulate(answer["sizes"]), answer["sizes"], answer["labels"], strict=True))
    if any(label == 0 and not size for _, size, label in steps):
        return []
    return [(end, label) for end, size, label in steps if size]


@dataclass
class StepCollator:
    """Collates rows of `step_rows`: `input_ids`, `attention_mask` (B, L); `last` (B, S): the index of each step's last
    token in the flattened sequences, −1 where a row has fewer; `right` (B, S)."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        prompts, answers = [row["prompt_ids"] for row in rows], [[row["completion_ids"]] for row in rows]
        inputs, _, spans = separate(prompts, answers, self.pad_token_id)
        most = max(len(row["ends"]) for row in rows)
        last, right = torch.full((len(rows), most), -1), torch.zeros(len(rows), most)
        for number, (row, (span,)) in enumerate(zip(rows, spans, strict=True)):
            last[number, : len(row["ends"])] = torch.tensor([span.start + end - 1 for end in row["ends"]])
            right[number, : len(row["ends"])] = torch.tensor(row["right"])
        return {**inputs, "last": last, "right": right}


def step_loss(logits: torch.Tensor, right: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each step's verdict, averaged over the steps of each row, then over rows. Scalar.

    logits, right: (B, S), the latter 1 for right and 0 for wrong; there: (B, S) bool.
    """
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, right, reduction="none") * there
    return (losses.sum(1) / there.sum(1)).mean()


class StepTrainer(ShardsOnCPU, TokenizedRows, RewardTrainer):
    """TRL's reward trainer on steps: a data set of `step_rows` and a `StepCollator`."""

    columns = ("prompt_ids", "completion_ids", "ends", "right", "length")

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride] # TRL's own is untyped
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        logits, there = ending_rewards(model, inputs), inputs["last"] >= 0
        loss = step_loss(logits, inputs["right"], there)
        with torch.no_grad():
            same = (((logits > 0) == (inputs["right"] > 0.5)) & there).sum() / there.sum()
            accuracy: Any = self.accelerator.gather(same)
            self._metrics["train" if model.training else "eval"]["accuracy"].append(accuracy.mean().item())
        return (loss, logits) if return_outputs else loss
