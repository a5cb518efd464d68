"""The reward model's training rows, loss and trainer (Llama 3, section 4.1.2).

A row is a prompt with its responses, best first: chosen > rejected, or edited > chosen > rejected. The prompt is
computed once: its responses follow it in one row, each with the positions it would have alone, and attend to the prompt
and themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import RewardTrainer

from posttrain.engines.reward_scorer import without_padding
from posttrain.training import packing
from posttrain.training.layout import laid_out
from posttrain.training.rows import Rendering
from posttrain.training.sharding import ShardsOnCPU
from posttrain.training.trainers import TokenizedRows

# Llama 2, table 27 (the larger margins): 1, 2/3, 1/3 and 0 by level. Llama 3 has none.
LLAMA2_MARGINS = {"significantly_better": 1.0, "better": 2 / 3, "slightly_better": 1 / 3, "marginally_better": 0.0}


def ranked_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    max_length: int | None,
    margins: Mapping[str, float] | None = None,
    max_similarity: float | None = None,
) -> tuple[Dataset, dict[str, int]]:
    """Preference rows as `prompt_ids`, `responses` (best first) and `margin`, and the number of dropped rows by reason.

    `margin`: the margin of the loss, from the row's level. `max_similarity`: pairs whose token ids have this similarity
    or more (difflib's ratio, in [0, 1]) are dropped. Trailing padding tokens are cut off a response, since transformers
    reads the score before them: if the end token is the padding token, the end token too.
    """
    prepared: list[dict[str, Any]] = []
    rendered = Rendering(tokenizer)
    dropped = {"too_long": 0, "near_identical": 0}
    for row in rows:
        ranking = [row[side] for side in ("edited", "chosen", "rejected") if row.get(side)]
        prompt, answers = rendered(row["prompt"], ranking)
        responses = [without_padding(ids, tokenizer.pad_token_id) for ids, _ in answers]
        if max_length is not None and len(prompt) + max(map(len, responses)) > max_length:
            dropped["too_long"] += 1
        elif max_similarity is not None and _similarity(*responses[-2:]) >= max_similarity:
            dropped["near_identical"] += 1
        else:
            margin = margins.get(row["level"] or "", 0.0) if margins else 0.0
            length = len(prompt) + sum(map(len, responses))
            prepared.append({"prompt_ids": prompt, "responses": responses, "margin": margin, "length": length})
    return Dataset.from_list(prepared), dropped


def _similarity(one: Sequence[int], other: Sequence[int]) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


@dataclass
class RankingCollator:
    """Collates rows of `ranked_rows` for `RankingTrainer`.

    The sequences are those of `layout.packed` or `layout.separate`. `last` (B, R): the index of each response's last
    token in the flattened sequences, −1 where a row has fewer. `margin`: (B,).
    """

    pad_token_id: int
    packed: bool = True
    additive: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        prompts, responses = [row["prompt_ids"] for row in rows], [row["responses"] for row in rows]
        inputs, _, spans = laid_out(prompts, responses, self.pad_token_id, pack=self.packed, additive=self.additive)
        last = torch.full((len(rows), max(map(len, responses))), -1)
        for number, row in enumerate(spans):
            last[number, : len(row)] = torch.tensor([span.last() for span in row])
        return {**inputs, "last": last, "margin": torch.tensor([row["margin"] for row in rows])}


def ranking_loss(rewards: torch.Tensor, there: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    """−log σ(r_i − r_j), averaged over the ordered pairs i < j of each row, then over rows. Scalar.

    rewards: (B, R), best first; there: (B, R) bool; margin: (B,), subtracted from the difference of the last two of a
    row (chosen and rejected; Llama 2, equation 2).
    """
    difference = rewards[:, :, None] - rewards[:, None, :]
    pairs = there[:, :, None] & there[:, None, :] & torch.ones_like(difference[0], dtype=torch.bool).triu(1)
    lowest = there.sum(1) - 1
    rows = torch.arange(len(rewards), device=rewards.device)
    taken = torch.zeros_like(difference)
    taken[rows, lowest - 1, lowest] = margin.to(taken.dtype)
    losses = -torch.nn.functional.logsigmoid(difference - taken) * pairs
    return (losses.sum((1, 2)) / pairs.sum((1, 2))).mean()


class RankingTrainer(ShardsOnCPU, TokenizedRows, RewardTrainer):
    """TRL's reward trainer on rankings: a data set of `ranked_rows` and a `RankingCollator`. If the model does not
    support packed rows, the collator makes separate ones, and `fallback` says why."""

    columns = ("prompt_ids", "responses", "margin", "length")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fallback: str | None = None
        collator = options["data_collator"]
        if collator.packed:
            longest = max(options["train_dataset"]["length"])
            self.fallback = packing.refusal(self.model, longest, functools.partial(_ends, self.model, collator))
            collator.packed = self.fallback is None

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride] # TRL's own is untyped
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        last = inputs["last"]
        rewards = ending_rewards(model, inputs)
        there = last >= 0
        loss = ranking_loss(rewards, there, inputs["margin"])
        centre = self.args.center_rewards_coefficient  # pyright: ignore[reportAttributeAccessIssue] # a RewardConfig
        if centre:
            loss = loss + centre * ((rewards * there).sum(1) ** 2).mean()
        with torch.no_grad():
            lowest = there.sum(1) - 1
            rows = torch.arange(len(rewards), device=rewards.device)
            gap: Any = self.accelerator.gather(rewards[rows, lowest - 1] - rewards[rows, lowest])
            metrics = self._metrics["train" if model.training else "eval"]
            metrics["accuracy"].append((gap > 0).float().mean().item())
            metrics["margin"].append(gap.mean().item())
        return (loss, rewards) if return_outputs else loss


def _ends(model: Any, collator: RankingCollator, is_packed: bool) -> torch.Tensor:
    """The rewards of the responses of `packing.probe_rows`, (responses,)."""
    rows = packing.probe_rows(model, collator.pad_token_id)
    made = [
        {"prompt_ids": prompt, "responses": responses, "margin": 0.0}
        for prompt, responses in zip(rows.prompts, rows.responses, strict=True)
    ]
    batch = replace(collator, packed=is_packed)(made)
    return ending_rewards(model, {name: value.to(model.device) for name, value in batch.items()}).flatten()


# What a batch holds beside the model's own inputs.
_OURS = ("last", "margin", "right")


def ending_rewards(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The reward at the last token of each response, (B, R) float32; 0 where a row has fewer.

    The whole model is called, as data-parallel wrappers require, and its head's output at every token is captured: a
    packed row has several responses, of which the model itself would read only the last.
    """
    found: list[torch.Tensor] = []
    head = next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "score")
    hook = head.register_forward_hook(lambda *call: found.append(call[2]))
    try:
        model(**{name: value for name, value in inputs.items() if name not in _OURS}, use_cache=False)
    finally:
        hook.remove()
    last = inputs["last"]
    return found[0].float().reshape(-1)[last.clamp(min=0)] * (last >= 0)
