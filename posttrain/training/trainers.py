"""TRL's trainers with what Llama 3 adds: small subclasses, no more than what must be overridden."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, IterableDataset
from trl import DPOTrainer, RewardTrainer


class KeepsLength:
    """Lets `group_by_length` see the rows' `length`: a trainer drops the columns that its model does not take."""

    _signature_columns: list[str] | None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # pyright: ignore[reportAttributeAccessIssue] # the trainer's
        if self._signature_columns is not None and "length" not in self._signature_columns:
            self._signature_columns.append("length")


class GroupedRewardTrainer(KeepsLength, RewardTrainer):
    """TRL's reward trainer, rows of like length together."""


class Llama3DPOTrainer(KeepsLength, DPOTrainer):
    """Adds `nll_weight` × the negative log-likelihood of the chosen answer, per token of it, averaged over sequences.

    TRL's own `sft` loss averages over the tokens of the micro-batch, so it depends on how rows are batched; this one
    does not. The data set is taken as already tokenized (prompt_ids, chosen_ids, rejected_ids).
    """

    def __init__(self, *, nll_weight: float, **options: Any) -> None:
        self.nll_weight = nll_weight
        super().__init__(**options)

    def _prepare_dataset(  # pyright: ignore[reportIncompatibleMethodOverride] # arguments are passed on unread
        self, dataset: Dataset | IterableDataset, *args: Any
    ) -> Dataset | IterableDataset:
        if "prompt_ids" in (dataset.column_names or []):
            return dataset
        return super()._prepare_dataset(dataset, *args)

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        if not self.nll_weight:
            return super()._compute_loss(model, inputs, return_outputs)
        policy = _Listening(model)
        result = super()._compute_loss(policy, inputs, return_outputs)
        nll = chosen_nll(policy.log_probs, inputs["completion_mask"])
        self._metrics["train" if model.training else "eval"]["nll"].append(nll.item())
        if return_outputs:
            return result[0] + self.nll_weight * nll, result[1]
        return result + self.nll_weight * nll


class _Listening:
    """Calls the model and keeps the log-probs of its first forward pass, which TRL computes but does not hand out."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.log_probs: torch.Tensor | None = None

    def __call__(self, **inputs: Any) -> Any:
        outputs = self._model(**inputs)
        if self.log_probs is None:
            self.log_probs = outputs.log_probs
        return outputs


def chosen_nll(log_probs: torch.Tensor | None, completion_mask: torch.Tensor) -> torch.Tensor:
    """Mean over sequences of −Σ log p / length of the chosen answers.

    log_probs: (2B, L−1 or more), one for each predicted token, zero outside the answers; completion_mask: (2B, L), the
    chosen in the first half.
    """
    assert log_probs is not None
    mask = completion_mask[:, 1:].chunk(2)[0].to(log_probs.dtype)
    chosen = log_probs[:, -mask.size(1) :].chunk(2)[0]
    return -((chosen * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
