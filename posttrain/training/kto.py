"""KTO on single answers, good or bad (Ethayarajh et al. 2024, arXiv 2402.01306): its rows, and TRL's trainer.

Equation 7: with r = log p(y|x) − log p_ref(y|x), the loss of a good answer is λ_D · (1 − σ(β (r − z))), that of a bad
one λ_U · (1 − σ(β (z − r))). z ≥ 0 is how far the policy is from the reference, estimated by the mean of r over prompts
with answers to other prompts (section 4.1); no gradient goes through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import KTOTrainer

from posttrain.data.chat_template import OTHER
from posttrain.storage.pieces import Pieces
from posttrain.training.layout import separate
from posttrain.training.rows import Rendering
from posttrain.training.sharding import ShardsOnCPU
from posttrain.training.trainers import KeepsReference, TokenizedRows

_OF_KL = ("KL_completion_ids", "KL_trained", "ref_KL_logps")


def labelled_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]], max_length: int
) -> tuple[Dataset, dict[str, int]]:
    """Rows with `prompt`, `completion` and `label` as token ids, and the number of dropped rows by reason.

    `trained` marks the completion's tokens that are in the loss: the assistant's text and its end token. A completion
    without such a token is dropped.
    """
    prepared: list[dict[str, Any]] = []
    rendered, dropped = Rendering(tokenizer), {"too_long": 0, "no_tokens": 0}
    for row in rows:
        prompt, ((answer, parts),) = rendered(row["prompt"], [row["completion"]])
        trained = [part != OTHER for part in parts]
        if len(prompt) + len(answer) > max_length:
            dropped["too_long"] += 1
        elif not any(trained):
            dropped["no_tokens"] += 1
        else:
            made = {"prompt_ids": prompt, "completion_ids": answer, "trained": trained, "label": row["label"]}
            prepared.append({**made, "length": len(prompt) + len(answer)})
    return Dataset.from_list(prepared), dropped


def in_steps(rows: Dataset, batch: int, seed: int, with_kl: bool) -> Dataset:
    """The rows shuffled, in the order of training, `batch` per optimizer step; within a step the longer ones first.

    `with_kl`: adds to each prompt the answer to another prompt of its step (`KL_completion_ids`), for the KL term.
    Order and pairs are the same in every epoch, so that the reference reads each pair once.
    """
    lengths, order = rows["length"], torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    steps = [order[start : start + batch] for start in range(0, len(order), batch)]
    rows = rows.select([at for step in steps for at in sorted(step, key=lambda at: -lengths[at])])
    if not with_kl:
        return rows
    others = rows.select(partners(rows["prompt_ids"], batch))
    rows = rows.add_column("KL_completion_ids", others["completion_ids"])
    return rows.add_column("KL_trained", others["trained"])


def partners(prompts: Sequence[Sequence[int]], batch: int) -> list[int]:
    """For each row, the index of the row of its step whose answer it is paired with in the KL term.

    The answers of a step are rotated by the shift that leaves the fewest rows with an answer to their own prompt: 1,
    unless several answers to a prompt are adjacent. A row alone in the last step is paired with the row before it.
    """
    named = [hash(tuple(prompt)) for prompt in prompts]
    found: list[int] = []
    for start in range(0, len(named), batch):
        step = named[start : start + batch]
        if len(step) == 1:
            found.append(start - 1 if start else 0)
            continue
        best, fewest = 1, len(step) + 1
        for by in range(1, len(step)):
            own = sum(step[at] == step[at - by] for at in range(len(step)))
            if own < fewest:
                best, fewest = by, own
            if not own:
                break
        found += [start + (at - best) % len(step) for at in range(len(step))]
    return found


@dataclass
class LabelledCollator:
    """Collates rows of `in_steps` for TRL's trainer: prompts with their answers, and under `KL_…` with the answers of
    others; `input_ids`, `attention_mask`, `completion_mask` (B, L), `label` (B,)."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {"label": torch.tensor([row["label"] for row in rows])}
        for prefix, trained in (("", "trained"), ("KL_", "KL_trained")):
            if trained not in rows[0]:
                continue
            prompts, answers = [row["prompt_ids"] for row in rows], [[row[f"{prefix}completion_ids"]] for row in rows]
            inputs, _, spans = separate(prompts, answers, self.pad_token_id)
            mask = torch.zeros_like(inputs["input_ids"]).flatten()
            for row, (span,) in zip(rows, spans, strict=True):
                mask[span.start : span.start + span.length] = torch.tensor(row[trained], dtype=mask.dtype)
            batch |= {f"{prefix}{name}": value for name, value in inputs.items()}
            batch[f"{prefix}completion_mask"] = mask.view_as(inputs["input_ids"])
        known = [name for name in ("ref_logps", "ref_KL_logps") if name in rows[0]]
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in known}


class StepKTOTrainer(ShardsOnCPU, TokenizedRows, KeepsReference, KTOTrainer):
    """TRL's KTO trainer on rows of `in_steps`, with the KL term of a whole optimizer step.

    TRL estimates and clamps it per micro-batch, and refuses micro-batches of one row, whose answer would be paired with
    itself: the result would depend on how many rows fit into memory. Here the log ratios of all rows of a step are
    computed before its first micro-batch, with the same weights and as many forward passes as TRL's.
    """

    reference_columns = ("ref_logps", "ref_KL_logps")
    columns = ("prompt_ids", "completion_ids", "trained", "label", "ref_logps", *_OF_KL)

    def __init__(self, *, pieces: Pieces, **options: Any) -> None:
        """`pieces`: where the reference's log-probs are kept, so that a training that is resumed need not ask again."""
        self._pieces = pieces
        self._kl = torch.zeros(1)
        args = options["args"]
        args.train_sampling_strategy = "sequential"  # pairs are of the rows' order
        micro_batch = args.per_device_train_batch_size
        args.per_device_train_batch_size = max(micro_batch, 2)  # TRL refuses 1: see above
        try:
            super().__init__(**options)
        finally:
            args.per_device_train_batch_size = micro_batch
        self._train_batch_size = args.train_batch_size

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of an optimizer step. Computes the step's KL term from them."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.calculate_KL and batches:
            assert self.model is not None
            self.model.train()
            with self.compute_loss_context_manager():
                ratios = [self._kl_ratios(self._prepare_inputs(batch)) for batch in batches]
            self._kl = torch.cat(ratios).mean()
            for batch in batches:
                batch["ref_KL_logps"] = torch.zeros_like(batch["ref_KL_logps"])  # what TRL takes off: done already
        return batches, count

    def _kl_ratios(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """log p − log p_ref of the KL answer of each row, (B,)."""
        logps: Any = super()._compute_kl_logps(self.model_wrapped, batch)
        return logps - batch["ref_KL_logps"]

    def _compute_kl_logps(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        return self._kl.expand(len(batch["label"])) if self.calculate_KL else None
