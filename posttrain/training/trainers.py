"""TRL's trainers with Llama 3's additions: small subclasses that override only what they must."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader
from trl import DPOTrainer, SFTTrainer

from posttrain.data.chat_template import OTHER, TEXT
from posttrain.storage.pieces import Pieces
from posttrain.training.answers import head_at_answers
from posttrain.training.layout import laid_out
from posttrain.training.packing import answer_log_probs, refusal, text_log_probs
from posttrain.training.ranks import made_together, use_cores
from posttrain.training.sharding import ShardsOnCPU

_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")  # the reference's log-probs of each side
_REFERENCE_ROWS = 256  # rows whose log-probs by the reference are kept together, to resume from


class TokenizedRows:
    """For a trainer whose rows are token ids already: nothing is prepared, and `columns` are what it keeps of a row.
    `length` is among them where rows are grouped by it."""

    columns: tuple[str, ...]

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [*self.columns]


@dataclass
class PairCollator:
    """Collates rows of `rows.pair_rows` for `Llama3DPOTrainer`, the chosen answers before the rejected ones.

    TRL gets the answers alone: `input_ids` (2B, 1 + A), which begin with a padding token; `completion_mask`
    (2B, 1 + A): the tokens in the preference loss, without the template's endings if `mask_format` is set;
    `attention_mask`, by which it counts tokens. The model is run on `answers` (see `answers.head_at_answers`), of which
    the assistant's text and its endings are trained on.
    """

    pad_token_id: int
    packed: bool = True
    additive: bool = False
    mask_format: bool = True

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        prompts = [row["prompt_ids"] for row in rows]
        responses = [[row["chosen_ids"], row["rejected_ids"]] for row in rows]
        inputs, there, spans = laid_out(prompts, responses, self.pad_token_id, pack=self.packed, additive=self.additive)
        sides = [(number, side) for side in (0, 1) for number in range(len(rows))]
        longest = max(len(responses[number][side]) for number, side in sides)
        ids = torch.full((len(sides), 1 + longest), self.pad_token_id)
        parts, predicted_at = torch.full_like(ids, OTHER), torch.zeros_like(ids)
        for at, (number, side) in enumerate(sides):
            stop = 1 + len(responses[number][side])
            ids[at, 1:stop] = torch.tensor(responses[number][side])
            parts[at, 1:stop] = torch.tensor(rows[number]["rejected_parts" if side else "chosen_parts"])
            predicted_at[at, 1:stop] = torch.tensor(spans[number][side].predicted_at())
        trained = parts != OTHER
        batch = {
            "input_ids": ids,
            "completion_mask": ((parts == TEXT) if self.mask_format else trained).long(),
            "attention_mask": there.long(),
            "answers": {
                "inputs": inputs,
                "ids": ids[:, 1:],
                "predicted_at": predicted_at[:, 1:],
                "trained": trained[:, 1:],
            },
        }
        for name in _REFERENCE:
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch


class KeepsReference:
    """Computes the reference's log-probs part by part and keeps them, so that a resumed training reads them. The ranks
    share each batch."""

    _pieces: Pieces
    reference_columns: tuple[str, ...]
    """Those of what the trainer's `compute_ref_log_probs` gives for a batch, in its order; it gives None for those that
    the training does not need."""

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The data set with these columns. TRL's own would keep all of them in one file of a cache, by a fingerprint
        that does not know the collator."""
        model: Any = self
        use_cores(model.ref_model or model.model)
        random = torch.get_rng_state()
        size = batch_size * max(1, _REFERENCE_ROWS // batch_size)

        def log_probs(start: int) -> pa.Table:
            part = dataset.select(range(start, min(start + size, len(dataset))))
            return self._reference_log_probs(part, batch_size)

        tables = [
            made_together(self._pieces, f"{name}-{start}-{size}", functools.partial(log_probs, start))
            for start in range(0, len(dataset), size)
        ]
        # Rows are shuffled by what is drawn next: the same, however many pieces there were to do. One pass draws once.
        torch.set_rng_state(random)
        torch.empty((), dtype=torch.int64).random_()
        return concatenate_datasets([dataset, Dataset(pa.concat_tables(tables))], axis=1)

    def _reference_log_probs(self, part: Dataset, batch_size: int) -> pa.Table:
        trainer: Any = self
        loader = DataLoader(part, batch_size=batch_size, collate_fn=trainer.data_collator)  # pyright: ignore[reportArgumentType] # rows can be indexed
        model, found = trainer.ref_model or trainer.model, dict[str, list[torch.Tensor]]()
        for batch in trainer.accelerator.prepare(loader):
            made = zip(self.reference_columns, trainer.compute_ref_log_probs(model, batch), strict=True)
            needed = {column: values for column, values in made if values is not None}
            for column, values in trainer.accelerator.gather_for_metrics(needed).items():
                found.setdefault(column, []).append(values.float().cpu())
        return pa.table({column: torch.cat(values).numpy() for column, values in found.items()})


class Llama3DPOTrainer(ShardsOnCPU, TokenizedRows, KeepsReference, DPOTrainer):
    """DPO as in Llama 3, section 4.1.4. The data set is already tokenized (`posttrain.training.rows.pair_rows`).

    The preference loss leaves out what the template writes after an answer, on both sides: common to chosen and
    rejected, these tokens are pushed up and down at once. The reference's log-probs are of the same tokens.

    Added is `nll_weight` × the negative log-likelihood of the chosen answer, its ending included, per token of it,
    averaged over sequences. TRL's own `sft` loss averages over the tokens of the micro-batch, so it depends on how rows
    are batched. All log-probs, the reference's too, are at `temperature`.
    """

    reference_columns = _REFERENCE
    columns = ("prompt_ids", "chosen_ids", "chosen_parts", "rejected_ids", "rejected_parts", "length", *_REFERENCE)

    def __init__(self, *, nll_weight: float, pieces: Pieces, temperature: float = 1.0, **options: Any) -> None:
        """`pieces`: where the reference's log-probs are kept, for a training that resumes."""
        self.nll_weight, self._pieces, self._temperature = nll_weight, pieces, temperature
        self.fallback: str | None = None
        self._longest = max(options["train_dataset"]["length"])
        if options.get("ref_model") is not None:  # now, since TRL's `__init__` puts its forward under autocast
            self._check_packing(options["ref_model"], options["data_collator"])
        super().__init__(**options)
        self._attach()

    _attached = False

    def _attach(self) -> None:
        """Replaces the models' forward, once, before the first batch: in TRL's `__init__`, for the reference."""
        if not self._attached:
            self._attached = True
            assert isinstance(self.data_collator, PairCollator)
            self._check_packing(
                self.model, self.data_collator, **({"output_router_logits": True} if self.aux_loss_enabled else {})
            )
            for model in (self.model, self.ref_model):
                if model is not None:
                    head_at_answers(self.accelerator.unwrap_model(model), self._temperature)

    def _check_packing(self, model: Any, collator: PairCollator, **forward: Any) -> None:
        """Switches to separate rows if the model does not support packed ones. `forward`: see `answer_log_probs`."""
        if collator.packed:
            measured = functools.partial(
                answer_log_probs, model, collator.pad_token_id, additive=collator.additive, **forward
            )
            self.fallback = refusal(model, self._longest, measured)
            collator.packed = self.fallback is None

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._attach()
        return super().compute_ref_log_probs(model, inputs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self._attach()
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if not self.nll_weight:
            return super()._compute_loss(model, inputs, return_outputs)
        policy = _CapturesLogProbs(model)
        result = super()._compute_loss(policy, inputs, return_outputs)
        nll = chosen_nll(policy.last_log_probs, inputs["answers"]["trained"])
        of_ranks: Any = self.accelerator.gather(nll.detach())
        self._metrics["train" if model.training else "eval"]["nll"].append(of_ranks.mean().item())
        if return_outputs:
            return result[0] + self.nll_weight * nll, result[1]
        return result + self.nll_weight * nll


class _CapturesLogProbs:
    """Wraps the policy and keeps the log-probs of whole answers of its last forward."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.last_log_probs = torch.empty(0)

    def __call__(self, **inputs: Any) -> Any:
        outputs = self._model(**inputs)
        self.last_log_probs = outputs.answer_log_probs
        return outputs


def chosen_nll(log_probs: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
    """Mean over sequences of −Σ log p / length of the chosen answers.

    log_probs: (2B, A); trained: (2B, A) bool, the chosen in the first half.
    """
    chosen, mask = log_probs.chunk(2)[0], trained.chunk(2)[0]
    return -((chosen * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


class AnswerSFTTrainer(ShardsOnCPU, SFTTrainer):
    """TRL's SFT trainer with the head at labelled tokens only: the same loss from fewer logits. They are divided by
    `temperature`."""

    fallback: str | None = None

    def __init__(self, *, temperature: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        head_at_answers(self.accelerator.unwrap_model(self.model), temperature)

    @classmethod
    def made(cls, **options: Any) -> AnswerSFTTrainer:
        """Builds a trainer that packs examples only if the model supports it; if not, it sets `fallback` and changes
        `args`.

        Such a model is loaded twice, since rows are packed when the trainer is built.
        """
        trainer, args = cls(**options), options["args"]
        if not trainer.padding_free:
            return trainer
        collator: Any = trainer.data_collator
        measured = functools.partial(text_log_probs, trainer.model, collator, collator.pad_token_id)
        why = refusal(trainer.model, 0, measured)  # a window holds in such rows, too: the mask is made of positions
        if why is None:
            return trainer
        del trainer
        args.packing = args.padding_free = False
        trainer = cls(**options)
        trainer.fallback = why
        return trainer
