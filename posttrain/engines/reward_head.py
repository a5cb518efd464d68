"""A reward model of any type: transformers' own class where there is one, else a head of ours on the type's body.

Ours is what transformers has for other types: a linear score on the last hidden state, read at the last token that is
not padding. It is registered with `AutoModelForSequenceClassification`, so that whoever loads, trains, adapts or
averages reward models sees no difference. Its folder is that of the others: `config.json` with `num_labels` and
`architectures`, safetensors with the body's weights under the body's prefix, and `score.weight`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class RewardHead:
    """Mixed into a type's own `PreTrainedModel` by `provide`. `score` is the head, the body bears the type's name."""

    base_model_prefix: str
    # A causal model's folder has no score, and a head over the vocabulary that is not wanted here.
    _keys_to_ignore_on_load_missing = (r"^score\.weight$",)
    _keys_to_ignore_on_load_unexpected = (r"^lm_head\.",)

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)  # pyright: ignore[reportCallIssue] # the PreTrainedModel that it is mixed into
        self.num_labels: int = config.num_labels or 1
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))
        self.score = torch.nn.Linear(config.get_text_config().hidden_size, self.num_labels, bias=False)
        self.post_init()  # pyright: ignore[reportAttributeAccessIssue] # as above

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **named: Any
    ) -> SequenceClassifierOutput:
        """`logits` (B, num_labels). input_ids: (B, L); what else is named goes to the body.

        As in transformers' classes the last token is found by its id: the last that is not the padding token.
        """
        named.pop("labels", None)
        out = getattr(self, self.base_model_prefix)(input_ids, attention_mask=attention_mask, **named)
        logits = self.score(out.last_hidden_state)
        pad = self.config.get_text_config().pad_token_id  # pyright: ignore[reportAttributeAccessIssue] # as above
        if pad is None and len(input_ids) > 1:
            raise ValueError("several rows at once need a padding token in the config")
        at = torch.arange(input_ids.shape[1], device=logits.device)
        there = (input_ids != pad).to(logits.device) if pad is not None else torch.ones_like(at)
        last = (at * there).expand(input_ids.shape).argmax(-1)
        return SequenceClassifierOutput(logits=logits[torch.arange(len(logits), device=logits.device), last])


def provide(path: str | Path) -> None:
    """Registers a head for the type of the model in a folder, where transformers has no class of its own."""
    config = AutoConfig.from_pretrained(path)
    known = AutoModelForSequenceClassification._model_mapping
    if type(config) in known or type(config) not in AutoModel._model_mapping:
        return
    body: Any = AutoModel._model_mapping[type(config)]
    family = [each for each in body.__mro__ if issubclass(each, PreTrainedModel) and each is not PreTrainedModel][-1]
    name = family.__name__.removesuffix("PreTrainedModel") + "ForSequenceClassification"
    # transformers reads a class's module to see which kernels its layers can be given.
    made = type(name, (RewardHead, family), {"__module__": family.__module__, "config_class": type(config)})
    # Without exist_ok transformers registers nothing, in silence, for a config that is its own.
    AutoModelForSequenceClassification.register(type(config), made, exist_ok=True)


def load_reward_model(path: str | Path, **options: Any) -> Any:
    """The reward model in a folder. `options` and errors: those of transformers' `from_pretrained`."""
    provide(path)
    return AutoModelForSequenceClassification.from_pretrained(path, **options)
