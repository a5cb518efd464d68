"""Texts as points: the mean of a model's last hidden states over a text's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from posttrain.engines.batches import by_length
from posttrain.engines.load import read
from posttrain.engines.protocol import context_length
from posttrain.system import keep_memory

_TOKENS = 8192  # in one forward, padding included
_LONGEST = 1024  # tokens of a text that are read
_WORD = 64  # characters: more of a text than so many a token is not even tokenized


class Embedder:
    """A model folder, read to `longest` tokens of a text. Raises ModelError where it cannot be loaded.

    `special_tokens`: those that its tokenizer puts around a text, as models made to embed were trained with.
    """

    def __init__(self, path: Path, device: str, longest: int = _LONGEST, special_tokens: bool = False) -> None:
        from transformers import AutoModel

        model, self.tokenizer = read(AutoModel, path, torch.float32, "a model to embed texts with")
        self.model = model.to(device).eval()
        self.longest = min(context_length(model.config), longest)
        self.special_tokens = special_tokens
        self.tokenizer.truncation_side = "right"
        if device == "cpu":
            keep_memory()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, width) float32; an empty text is zero."""
        some = [text[: _WORD * self.longest] for text in texts]
        options = {"add_special_tokens": self.special_tokens, "truncation": True, "max_length": self.longest}
        ids = self.tokenizer(some, **options)["input_ids"] if some else []
        found = np.zeros((len(texts), self.model.config.get_text_config().hidden_size), dtype=np.float32)
        for some in by_length([len(row) for row in ids], _TOKENS):
            rows = [torch.tensor(ids[at]) for at in some]
            batch = pad_sequence(rows, batch_first=True)  # at the end: no token sees what comes after it
            mask = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
            device = self.model.device
            states = self.model(batch.to(device), attention_mask=mask.to(device)).last_hidden_state.float().cpu()
            found[some] = ((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()
        return found
