"""The recipe's `model.lora` as a PEFT config."""

from __future__ import annotations

from peft import LoraConfig, TaskType

from posttrain.recipe import Lora
from posttrain.stages import Job


def lora_config(job: Job, task: TaskType) -> LoraConfig | None:
    """None trains all weights. A reward model's head is new, so it is trained whole and saved with the adapter."""
    if job.config["model"]["lora"] is None:
        return None
    lora = Lora.model_validate(job.config["model"]["lora"])
    return LoraConfig(
        task_type=task,
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
        **lora.model_dump(),
    )
