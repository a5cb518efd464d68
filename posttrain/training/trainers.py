"""TRL's trainers with what Llama 3 adds: small subclasses, no more than what must be overridden."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from posttrain.chat import OTHER, TEXT
from posttrain.shards import Pieces

_REFERENCE_ROWS = 256  # pairs whose log-probs by the reference are kept together, to resume from


class KeepsLength:
    """Lets `group_by_length` see the rows' `length`: a trainer drops the columns that its model does not take."""

    _signature_columns: list[str] | None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # pyright: ignore[reportAttributeAccessIssue] # the trainer's
        if self._signature_columns is not None and "length" not in self._signature_columns:
            self._signature_columns.append("length")


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's collator, with what is trained on by the parts of the answers (see `posttrain.chat.render_turns`).

    `completion_mask` (2B, L): what the assistant says, with its ending. `preference_mask` (2B, L): what the preference
    loss is of, which leaves the endings out where `mask_format` says so.
    """

    mask_format: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        parts = torch.zeros_like(batch["input_ids"])
        sides = [(row, side) for side in ("chosen_parts", "rejected_parts") for row in examples]
        for at, (row, side) in enumerate(sides):
            start = len(row["prompt_ids"])
            parts[at, start : start + len(row[side])] = torch.tensor(row[side])
        batch["completion_mask"] = (parts != OTHER).long()
        batch["preference_mask"] = (parts == TEXT).long() if self.mask_format else batch["completion_mask"]
        return batch


class Llama3DPOTrainer(KeepsLength, DPOTrainer):
    """DPO as in Llama 3, section 4.1.4. The data set is already tokenized (`posttrain.training.rows.pair_rows`).

    The preference loss leaves out what the template writes after an answer, on both sides: common to chosen and
    rejected, these tokens are pushed up and down at once. The reference's log-probs are of the same tokens.

    Added is `nll_weight` × the negative log-likelihood of the chosen answer, its ending included, per token of it,
    averaged over sequences. TRL's own `sft` loss averages over the tokens of the micro-batch, so it depends on how rows
    are batched.
    """

    def __init__(self, *, nll_weight: float, mask_format: bool, pieces: Pieces, **options: Any) -> None:
        """`pieces`: where the reference's log-probs are kept, so that a training that is resumed need not ask again."""
        self.nll_weight, self._pieces = nll_weight, pieces
        collator = PairCollator(options["processing_class"].pad_token_id or 0, mask_format=mask_format)
        super().__init__(data_collator=collator, **options)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None and "chosen_parts" not in self._signature_columns:
            self._signature_columns += ["chosen_parts", "rejected_parts"]

    def _prepare_dataset(  # pyright: ignore[reportIncompatibleMethodOverride] # arguments are passed on unread
        self, dataset: Dataset | IterableDataset, *args: Any
    ) -> Dataset | IterableDataset:
        if "prompt_ids" in (dataset.column_names or []):
            return dataset
        return super()._prepare_dataset(dataset, *args)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        random = torch.get_rng_state()
        size = batch_size * max(1, _REFERENCE_ROWS // batch_size)
        logps = super()._precompute_ref_logps

        def asked(start: int) -> pa.Table:
            part = dataset.select(range(start, min(start + size, len(dataset))))
            made = logps(part, name, batch_size)
            columns = [each for each in made.column_names if each not in part.column_names]
            return made.select_columns(columns).with_format("arrow")[:]

        tables = [
            self._pieces.made(f"{name}-{start}-{size}", functools.partial(asked, start))
            for start in range(0, len(dataset), size)
        ]
        # Rows are shuffled by what is drawn next: the same, however many pieces there were to do. One pass draws once.
        torch.set_rng_state(random)
        torch.empty((), dtype=torch.int64).random_()
        return concatenate_datasets([dataset, Dataset(pa.concat_tables(tables))], axis=1)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        return super().compute_ref_log_probs(model, _preference(inputs))

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        if not self.nll_weight:
            return super()._compute_loss(model, _preference(inputs), return_outputs)
        policy = _Listening(model, inputs)
        result = super()._compute_loss(policy, _preference(inputs), return_outputs)
        nll = chosen_nll(policy.log_probs, inputs["completion_mask"])
        self._metrics["train" if model.training else "eval"]["nll"].append(nll.item())
        if return_outputs:
            return result[0] + self.nll_weight * nll, result[1]
        return result + self.nll_weight * nll


def _preference(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch as the preference loss sees it."""
    seen = {name: value for name, value in inputs.items() if name != "preference_mask"}
    return {**seen, "completion_mask": inputs["preference_mask"]}


class _Listening:
    """The policy's forward: keeps the log-probs of whole answers, and hands on those that the preference loss is of."""

    def __init__(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        self._model = model
        self._labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        self._mask = inputs["preference_mask"][:, 1:]
        self.log_probs: torch.Tensor | None = None

    def __call__(self, **inputs: Any) -> Any:
        outputs = self._model(**{**inputs, "labels": self._labels})
        log_probs = outputs.log_probs[:, -self._mask.size(1) :]
        self.log_probs, outputs.log_probs = log_probs, log_probs * self._mask
        return outputs


def chosen_nll(log_probs: torch.Tensor | None, completion_mask: torch.Tensor) -> torch.Tensor:
    """Mean over sequences of −Σ log p / length of the chosen answers.

    log_probs: (2B, L−1), one for each predicted token; completion_mask: (2B, L), the chosen in the first half.
    """
    assert log_probs is not None
    mask = completion_mask[:, 1:].chunk(2)[0].to(log_probs.dtype)
    chosen = log_probs.chunk(2)[0]
    return -((chosen * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
