"""Compatibility of two models' tokenizers, and the context length."""

from __future__ import annotations

from pathlib import Path

from posttrain.engines import protocol
from posttrain.errors import ModelError


def check_same_tokens(model: Path, reference: Path) -> None:
    """Raises ModelError when DPO's reference does not read tokens as the model does."""
    from transformers import AutoTokenizer

    ours, theirs = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in (model, reference))
    if ours != theirs:
        raise ModelError(
            "dpo: the reference has another tokenizer than the policy, so their log-probs cannot be compared",
            file=str(reference),
            hint="set dpo.reference to a model of the same family, or to start, initial, previous or averaged",
            rule="model-other-tokenizer",
        )


def context_length(model: Path) -> int:
    """The context length in tokens; a huge number if the config does not say."""
    from transformers import AutoConfig

    return protocol.context_length(AutoConfig.from_pretrained(model))
