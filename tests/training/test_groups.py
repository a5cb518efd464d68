"""Completions of one prompt in one row: which go together, and that the model gives them the same log-probs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_models import causal_lm

from posttrain.training.groups import as_answers, in_rows


def test_completions_share_a_row_while_they_are_no_longer_than_twice_their_prompt() -> None:
    texts = [("a", 4, 3), ("b", 1, 5), ("a", 4, 4), ("a", 4, 2), ("b", 1, 1)]
    assert in_rows(texts, packed=True) == [[0, 2], [3], [1], [4]]
    assert in_rows(texts, packed=False) == [[0], [2], [3], [1], [4]]


@pytest.mark.parametrize("packed", [True, False])
def test_each_gets_the_log_probs_that_it_has_alone(packed: bool) -> None:
    model: Any = causal_lm("llama").eval()
    prompts, answers = ([5, 6, 7, 8], [9, 10], [5, 6, 7, 8]), ([11, 12], [13], [14, 15, 16])
    pad, most = 0, 3
    ids = torch.tensor(
        [[pad] * (4 - len(p)) + p + a + [pad] * (most - len(a)) for p, a in zip(prompts, answers, strict=True)]
    )
    order, asked = as_answers(ids, ids != pad, most, pad, packed, additive=False)
    assert order.tolist() == [0, 2, 1] and asked["inputs"]["input_ids"].shape[0] == (2 if packed else 3)
    with torch.no_grad():
        given = model(**asked["inputs"]).logits.flatten(0, 1).log_softmax(-1)
        found = given[asked["predicted_at"]].gather(-1, asked["ids"][..., None])[..., 0]
        for at, row in enumerate(order.tolist()):
            text = torch.tensor([[*prompts[row], *answers[row]]])
            alone = model(text).logits[0, len(prompts[row]) - 1 : -1].log_softmax(-1)
            wanted = alone[range(len(answers[row])), answers[row]]
            torch.testing.assert_close(found[at][asked["trained"][at]], wanted, rtol=0, atol=1e-5)
