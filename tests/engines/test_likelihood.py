"""Log-likelihoods of continuations against transformers' own forward, one text at a time."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import causal_lm, tokenizer

from posttrain.engines.likelihood import Likelihoods
from posttrain.engines.load import prepare

# Continuations that begin alike, are alike, or have one token. The second context is longer than a window of 12.
CONTEXTS = [[5, 6, 7], [9 + at % 50 for at in range(30)], [11], [4, 4]]
CONTINUATIONS = [[[8, 9, 10], [8, 9], [8, 9, 10], [3]], [[40, 41], [7]], [[250, 251, 252, 253, 254]], []]


def plain(model: torch.nn.Module, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    ids = torch.tensor([[*context, *continuation]])
    logits = model(input_ids=ids).logits[0, len(context) - 1 : -1].double()
    of_tokens = logits.log_softmax(-1)[torch.arange(len(continuation)), torch.tensor(continuation)]
    return float(of_tokens.sum()), logits.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "mamba"])
def test_each_continuation_has_what_the_plain_model_gives_it(kind: str) -> None:
    model = causal_lm(kind)
    with torch.inference_mode():
        greedy = int(model(input_ids=torch.tensor([CONTEXTS[0]])).logits[0, -1].argmax())
        continuations = [[*CONTINUATIONS[0], [greedy]], *CONTINUATIONS[1:]]
        wanted = [
            [plain(model, context, one) for one in some] for context, some in zip(CONTEXTS, continuations, strict=True)
        ]
    likelihoods = Likelihoods(prepare(model, tokenizer(), "float32", "cpu"))
    assert (likelihoods.fallback is None) == (kind != "mamba")
    found = likelihoods.of(CONTEXTS, continuations)
    assert [[one.greedy for one in some] for some in found] == [[one for _, one in some] for some in wanted]
    assert found[0][-1].greedy and not all(one.greedy for one in found[0])
    for ours, theirs in zip(found, wanted, strict=True):
        assert [one.total for one in ours] == pytest.approx([one for one, _ in theirs], abs=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    likelihoods = Likelihoods(prepare(causal_lm("llama"), tokenizer(), "float32", "cpu"))
    with pytest.raises(ValueError, match="text 1 has 97 tokens, the model's context 96"):
        likelihoods.of([[5], [5] * 90], [[[6]], [[6] * 7]])
    with pytest.raises(ValueError, match="text 0 has an empty context or continuation"):
        likelihoods.of([[5]], [[[]]])
