"""Checks a model type for what its stages need, before anything is sampled: from its config, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.trainer_utils import check_target_module_exists

from posttrain.config import Lora
from posttrain.engines import reward_head
from posttrain.errors import ModelError
from posttrain.training.lora import peft_config


def has_linear(folder: Path, names: str | list[str], lora: Mapping[str, Any] | None, *, reward_model: bool) -> bool:
    """Whether the model in `folder`, as it is trained, has a linear layer that matches `names`, read like
    `optim_target_modules`."""
    config, task = AutoConfig.from_pretrained(folder), TaskType.SEQ_CLS if reward_model else TaskType.CAUSAL_LM
    with torch.device("meta"):  # names alone
        model: Any = _scorer(folder, config) if reward_model else AutoModelForCausalLM.from_config(config)
        if lora:
            model = get_peft_model(model, peft_config(Lora.model_validate(lora), task, config.model_type))
    return any(
        isinstance(module, torch.nn.Linear) and check_target_module_exists(names, name)
        for name, module in model.named_modules()
    )


def check(folder: Path, lora: Mapping[str, Any] | None, reward_model: bool) -> None:
    """Checks that the model in `folder` can be a policy, a reward model (if one is trained) and get adapters (`lora`,
    the recipe's `model.lora`). Types that are not in docs/models.md are checked in the same way.

    Raises:
        ModelError: its type cannot.
    """
    config = AutoConfig.from_pretrained(folder)
    kind = config.model_type
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(
            f"transformers has no causal language model of the type {kind!r}",
            file=str(folder),
            hint="choose a model that writes text from left to right; docs/models.md lists types that were tried",
            rule="architecture-no-causal-lm",
        )
    with torch.device("meta"):  # shapes alone
        policy = AutoModelForCausalLM.from_config(config)
        if reward_model:
            scorer = _scorer(folder, config)
            if not hasattr(scorer, "score"):
                raise ModelError(
                    f"transformers' {type(scorer).__name__} has no linear head called score, so it gives no reward at "
                    "the end of an answer",
                    file=str(folder),
                    hint="take the reward_model section out, or start from a model of a type in docs/models.md",
                    rule="architecture-no-reward-head",
                )
        if lora:
            _check_adapters(folder, policy, Lora.model_validate(lora))


def _scorer(folder: Path, config: Any) -> Any:
    reward_head.provide(folder)
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config)


def _check_adapters(folder: Path, policy: Any, lora: Lora) -> None:
    try:
        get_peft_model(policy, peft_config(lora, TaskType.CAUSAL_LM, policy.config.model_type))
    except ValueError as error:
        raise ModelError(
            f"peft cannot add adapters to {policy.config.model_type!r}: {error}",
            file=str(folder),
            hint="name other layers in model.lora.target_modules, or train all weights (model.lora: null)",
            rule="architecture-lora",
        ) from error
