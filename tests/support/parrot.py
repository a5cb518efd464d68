"""A model that says what it is told: the next token depends on the last one alone, by a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from support.tiny_models import EOS, causal_lm, tokenizer

CONTEXT = 64
SPOKEN = "\u00e9\U0001f600"  # two and four bytes, all different, a token each
LOOP, CHAIN, CHOICES = "wxyz", "KLMN", "abcdefgh"
# The last character of a prompt decides what follows.
SPELLS, ENDS, GOES_ON, STOPS, ROLLS = "Q", "W", "V", "J", "R"


def table(tok: Any) -> dict[int, list[int]]:
    """From a token to those that may follow it, each as likely."""
    nexts: dict[int, list[int]] = {}

    def chain(ids: Sequence[int]) -> None:
        for one, other in pairwise(ids):
            nexts[one] = [other]

    def ids(text: str) -> list[int]:
        made = tok.encode(text, add_special_tokens=False)
        assert len(made) == len(text.encode()), f"{text!r} is not a token a byte"
        return made

    chain([*ids(SPELLS), *ids(SPOKEN), EOS])
    chain([*ids(ENDS), EOS])
    chain([*ids(GOES_ON), *(ids(one)[0] for one in LOOP), ids(LOOP[0])[0]])
    chain([*ids(STOPS), *(ids(one)[0] for one in CHAIN), EOS])
    choices = [ids(one)[0] for one in CHOICES]
    nexts |= dict.fromkeys([*ids(ROLLS), *choices], choices)
    return nexts


def parrot(**changes: Any) -> Any:
    """A Llama whose layers add nothing: embedding, norm, and an output row for what may follow each token."""
    model = causal_lm("llama", hidden_size=300, num_hidden_layers=1, max_position_embeddings=CONTEXT, **changes)
    with torch.no_grad():
        for part in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj, model.lm_head):
            part.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(300))
        model.model.norm.weight.fill_(1.0)
        _write(model.lm_head.weight, table(tokenizer()))
    return model


def _write(weight: torch.Tensor, nexts: Mapping[int, Sequence[int]]) -> None:
    for last, following in nexts.items():
        weight[list(following), last] = 3.0  # times the norm's sqrt(300): all else has no chance


def save(folder: Path) -> Path:
    parrot().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
