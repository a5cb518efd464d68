"""Runs the language-model head only at tokens whose prediction is trained on.

TRL's fused head does so on GPUs; elsewhere it computes logits, softmax and entropy at every token, prompts and padding
included. In packed rows a prompt's last token also predicts the first token of several answers.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from trl.trainer.utils import FusedCausalLMOutput

from posttrain.errors import StageError
from posttrain.training.head import for_cpu, is_linear

# What TRL's fused head gives for each predicted token.
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")


@dataclass
class AnswerOutput(FusedCausalLMOutput):
    """TRL's output plus `answer_log_probs` (N, A): of all trained tokens, also those that the labels mask."""

    answer_log_probs: torch.Tensor | None = None


def head_at_answers(model: torch.nn.Module, temperature: float = 1.0) -> None:
    """Replaces the forward of a model that has TRL's fused head. All fields are of logits / `temperature`.

    With `labels` (B, L), the fields have the shape (1, n): one for each of the n labels that are not −100.

    With `answers` beside them, a dict of the model's own `inputs`, `ids` (N, A), `predicted_at` (N, A): where in the
    flattened inputs each id is predicted, and `trained` (N, A) bool, the model is run on those inputs, and the fields
    are (N, A), zero where nothing is trained on. `log_probs` are then zero where `labels` (N, A + 1) are −100, too, and
    `answer_log_probs` are not.

    Raises:
        StageError: the temperature is not 1, and the output layer has a bias or a soft cap.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if temperature != 1 and not is_linear(inner):
        raise StageError(
            f"the output layer of a {type(inner).__name__} has a bias or a soft cap, so its loss has no other "
            "temperature than 1; leave `temperature` of sft and dpo out"
        )
    whole = inner.forward

    def forward(
        self: Any, *given: Any, answers: dict[str, Any] | None = None, fused_lm_head: bool = False, **named: Any
    ) -> Any:
        if not fused_lm_head:
            return whole(*given, **named)
        labels = named.pop("labels")
        if answers is None:
            trained = labels[:, 1:] != -100
            index = torch.arange(labels.numel(), device=labels.device).reshape(labels.shape)[:, :-1]
            return _at(self, whole, index[trained], labels[:, 1:][trained], named, temperature)
        trained = answers["trained"]
        named = {**named, **answers["inputs"]}
        outputs = _at(self, whole, answers["predicted_at"][trained], answers["ids"][trained], named, temperature)
        placed = {
            name: values.new_zeros(trained.shape).masked_scatter(trained, values) if name in PER_TOKEN else values
            for name, values in outputs.items()
        }
        seen = placed["log_probs"] * (labels[:, 1:] != -100)
        return AnswerOutput(**{**placed, "log_probs": seen}, answer_log_probs=placed["log_probs"])

    inner.forward = types.MethodType(forward, inner)


def _at(
    inner: Any, forward: Any, at: torch.Tensor, labels: torch.Tensor, named: dict[str, Any], temperature: float
) -> Any:
    """The fused head at the tokens `at` (n,) of the flattened sequences, which predict `labels` (n,)."""

    def select(module: Any, given: Any, outputs: Any) -> Any:
        states = outputs.last_hidden_state.flatten(0, 1)[at][None]
        outputs.last_hidden_state = states if temperature == 1 else states / temperature
        return outputs

    hook = inner.base_model.register_forward_hook(select)
    try:
        with for_cpu(inner):
            return forward(**named, shift_labels=labels[None], fused_lm_head=True)
    finally:
        hook.remove()
