"""The recipe's `model.lora` as a PEFT config."""

from __future__ import annotations

from peft import LoraConfig, TaskType

from posttrain.recipe import Model


def lora_config(model: Model, task: TaskType) -> LoraConfig | None:
    """None trains all weights. A reward model's head is new, so it is trained whole and saved with the adapter."""
    if model.lora is None:
        return None
    return LoraConfig(
        task_type=task,
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
        **model.lora.model_dump(),
    )
