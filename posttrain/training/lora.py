"""The recipe's `model.lora`: peft adapters, merged into the model when a stage is saved; QLoRA's 4-bit weights.

Models pass between stages merged, so sampling, scoring and averaging need not know about adapters. The model that a
stage starts from is then the whole policy, and DPO's reference "start" is that model with the new adapter disabled.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from posttrain.config import Lora
from posttrain.errors import InputError
from posttrain.job import Job

ADAPTER = "adapter"
# Types whose mixers use the weights of these layers and not the layers, so that an adapter would do nothing: peft
# refuses the first by name (`peft.tuners.tuners_utils`).
_MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
_MAMBA_OWN = ["out_proj", "dt_proj"]


def lora_config(job: Job, task: TaskType) -> LoraConfig | None:
    """peft's config, or None to train all weights. A reward model's head is new: trained whole, saved with the
    adapter."""
    lora = _lora(job)
    if lora is None:
        return None
    return peft_config(lora, task, AutoConfig.from_pretrained(job.inputs["model"]).model_type)


def peft_config(lora: Lora, task: TaskType, model_type: str) -> LoraConfig:
    """The recipe's `model.lora` as peft's config. `all-linear` skips layers that peft cannot adapt in this type."""
    left_out = _MAMBA_OWN if lora.target_modules == "all-linear" and model_type in _MAMBA else None
    return LoraConfig(
        task_type=task,
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
        exclude_modules=left_out,
        **lora.model_dump(exclude={"adapters", "load_in_4bit"}),
    )


def four_bits(job: Job) -> dict[str, Any]:
    """Keyword arguments that load a model in 4 bits as in QLoRA (arXiv 2305.14314, section 3): NF4, double
    quantization, computed in bfloat16. Empty unless the recipe asks for it.

    Raises:
        InputError: it does, and this machine cannot.
    """
    lora = _lora(job)
    if lora is None or not lora.load_in_4bit:
        return {}
    check_four_bits()
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantized, "dtype": "bfloat16"}


def check_four_bits() -> None:
    """Raises InputError if bitsandbytes or a CUDA GPU is missing."""
    there = {"the package bitsandbytes (0.46.1 or newer)": is_bitsandbytes_available()}
    there["a CUDA GPU"] = torch.cuda.is_available()
    missing = [name for name, found in there.items() if not found]
    if missing:
        raise InputError(
            f"model.lora.load_in_4bit needs {' and '.join(there)}; missing here: {', '.join(missing)}",
            hint="pip install 'bitsandbytes>=0.46.1' on a machine with a GPU, or set model.lora.load_in_4bit: false",
        )


def merged(model: PeftModel, job: Job, weights: Mapping[str, torch.Tensor] | None = None) -> PreTrainedModel:
    """The model with its adapter merged in. If the recipe keeps adapters, it is saved in `adapter/` of the output.
    `weights`: those of a model that is sharded."""
    lora = _lora(job)
    assert lora
    if lora.adapters == "keep":
        start = {"base_model_name_or_path": job.inputs["model"].name}  # an artifact's folder is called by its key
        save_adapter(model, job.out / ADAPTER, job.runtime.get("start", start), weights)
    if lora.load_in_4bit or weights is not None:
        return merged_into(model, job.inputs["model"], weights)
    return model.merge_and_unload()


def merged_into(model: PeftModel, start: Path, weights: Mapping[str, torch.Tensor] | None = None) -> PreTrainedModel:
    """The adapter of `model`, and its head if it has one, merged into the weights in `start` in float32.

    For sharded models, whose `weights` are given, and 4-bit ones: peft would merge into the quantized weights and
    quantize the sum again, so that each stage would add its own error to the policy.
    """
    rounded: Any = model.get_base_model()
    settings = rounded.config.to_dict()  # with the trainer's padding token and number of labels
    plain = {name: value for name, value in settings.items() if name != "quantization_config" and name[0] != "_"}
    config = type(rounded.config).from_dict(plain)
    whole = type(rounded).from_pretrained(start, config=config, dtype=torch.float32)
    adapted: Any = get_peft_model(whole, copy.deepcopy(model.peft_config["default"]))
    set_peft_model_state_dict(adapted, get_peft_model_state_dict(model, weights, save_embedding_layers=False))
    return adapted.merge_and_unload()


def save_adapter(
    model: PeftModel, folder: Path, start: Mapping[str, str], weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Saves peft's two files. `start` goes into the config: the base model by Hub id and commit
    (`base_model_name_or_path`, `revision`) or by its artifact's key; never a path of this machine.
    """
    for name, value in start.items():
        setattr(model.peft_config["default"], name, value)
    model.save_pretrained(
        str(folder), state_dict=weights, save_embedding_layers=False
    )  # "auto" would look the key up on the Hub
    (folder / "README.md").unlink(missing_ok=True)  # a card with no word on data or figures


def _lora(job: Job) -> Lora | None:
    given = job.config.get("model", {}).get("lora")
    return Lora.model_validate(given) if given else None
