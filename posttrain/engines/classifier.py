"""How probable a label is by a sequence-classification model, for many texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.engines.batches import by_length
from posttrain.engines.load import read
from posttrain.engines.protocol import context_length
from posttrain.errors import ModelError, StageError
from posttrain.system import keep_memory

_TOKENS = 8192  # in one forward, padding included
_WINDOW = 512  # tokens; longer texts are read window by window
_OVERLAP = 64  # tokens that two windows share: what stands at the edge of one stands inside the other


class SequenceClassifier:
    """A model folder, read for one of its labels.

    Raises:
        ModelError: it cannot be loaded, has no fast tokenizer, or no such label.
    """

    def __init__(self, path: Path, label: str, device: str) -> None:
        from transformers import AutoModelForSequenceClassification

        model, self.tokenizer = read(AutoModelForSequenceClassification, path, torch.float32, "a sequence classifier")
        if not self.tokenizer.is_fast:
            raise ModelError("splitting long texts needs a fast tokenizer, and this model has none", file=str(path))
        self.model = model.to(device).eval()
        self.at = _column(model.config, label, path)
        self.several = model.config.num_labels == 1 or model.config.problem_type == "multi_label_classification"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.tokenizer.pad_token_id
        # Some families begin to count positions at 2.
        self.window = min(self.tokenizer.model_max_length, context_length(model.config) - 2, _WINDOW)
        if device == "cpu":
            keep_memory()

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str]) -> list[float]:
        """The label's probability for each text; of a text of several windows the highest.

        Raises:
            StageError: the model gave no number.
        """
        found = [0.0] * len(texts)
        for owners, batch in self._batches(texts):
            logits = self.model(**batch.to(self.model.device)).logits.float()
            chances = logits.sigmoid() if self.several else logits.softmax(-1)
            for owner, chance in zip(owners, chances[:, self.at].tolist(), strict=True):
                if math.isnan(chance):
                    raise StageError("the classifier's output is NaN: its weights are damaged")
                found[owner] = max(found[owner], chance)
        return found

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        """Windows of like length together, with the text that each belongs to."""
        if not texts:
            return
        cut = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.window,
            stride=min(_OVERLAP, self.window // 4),
            return_overflowing_tokens=True,
        )
        owners: list[int] = cut.pop("overflow_to_sample_mapping")
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in cut]
        for some in by_length([len(ids) for ids in cut["input_ids"]], _TOKENS):
            rows = {name: [cut[name][at] for at in some] for name in names}
            yield [owners[at] for at in some], self.tokenizer.pad(rows, return_tensors="pt")


def _column(config: Any, label: str, path: Path) -> int:
    labels = {str(name): int(at) for at, name in config.id2label.items()}
    if label not in labels:
        raise ModelError(f"the classifier has no label {label!r}", file=str(path), hint=f"labels: {', '.join(labels)}")
    return labels[label]
