"""The recipe's `model.lora`: adapters for peft, merged into the model when a stage is saved; QLoRA's four bits.

Models pass between stages merged, so that whatever samples, scores or averages them needs to know of no adapter. The
model that a stage starts from is then the whole policy, and DPO's reference "start" is that model with the new adapter
off.
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
    """None trains all weights. A reward model's head is new, so it is trained whole and saved with the adapter."""
    lora = _lora(job)
    if lora is None:
        return None
    return peft_config(lora, task, AutoConfig.from_pretrained(job.inputs["model"]).model_type)


def peft_config(lora: Lora, task: TaskType, model_type: str) -> LoraConfig:
    """The recipe's `model.lora` in peft's words. `all-linear` leaves out what peft cannot adapt in this type."""
    left_out = _MAMBA_OWN if lora.target_modules == "all-linear" and model_type in _MAMBA else None
    return LoraConfig(
        task_type=task,
        modules_to_save=["score"] if task == TaskType.SEQ_CLS else None,
        exclude_modules=left_out,
        **lora.model_dump(exclude={"adapters", "load_in_4bit"}),
    )


def four_bits(job: Job) -> dict[str, Any]:
    """What loads a model in 4 bits, as QLoRA has it (arXiv 2305.14314, section 3): NF4, constants quantized too,
    computed in bfloat16. Empty where the recipe does not ask for it.

    Raises:
        InputError: it does, and the machine cannot.
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
    """Raises InputError that names what of bitsandbytes and a CUDA GPU is missing."""
    there = {"the package bitsandbytes (0.46.1 or newer)": is_bitsandbytes_available()}
    there["a CUDA GPU"] = torch.cuda.is_available()
    missing = [name for name, found in there.items() if not found]
    if missing:
        raise InputError(
            f"model.lora.load_in_4bit needs {' and '.join(there)}; missing here: {', '.join(missing)}",
            hint="pip install 'bitsandbytes>=0.46.1' on a machine with a GPU, or set model.lora.load_in_4bit: false",
        )


def merged(model: PeftModel, job: Job) -> PreTrainedModel:
    """The model with its adapter merged in. Where the recipe keeps adapters, the job's `adapter/` holds it too."""
    lora = _lora(job)
    assert lora
    if lora.adapters == "keep":
        start = {"base_model_name_or_path": job.inputs["model"].name}  # an artifact's folder is called by its key
        save_adapter(model, job.out / ADAPTER, job.runtime.get("start", start))
    if lora.load_in_4bit:
        return merged_into(model, job.inputs["model"])
    return model.merge_and_unload()


def merged_into(model: PeftModel, start: Path) -> PreTrainedModel:
    """The adapter of `model`, and the head where there is one, merged into the weights in `start` in float32.

    For a model in 4 bits: peft would merge into the rounded weights and round the sum again, so that each stage would
    add its own error to the policy.
    """
    rounded: Any = model.get_base_model()
    settings = rounded.config.to_dict()  # with the trainer's padding token and number of labels
    plain = {name: value for name, value in settings.items() if name != "quantization_config" and name[0] != "_"}
    config = type(rounded.config).from_dict(plain)
    whole = type(rounded).from_pretrained(start, config=config, dtype=torch.float32)
    adapted: Any = get_peft_model(whole, copy.deepcopy(model.peft_config["default"]))
    set_peft_model_state_dict(adapted, get_peft_model_state_dict(model, save_embedding_layers=False))
    return adapted.merge_and_unload()


def save_adapter(model: PeftModel, folder: Path, start: Mapping[str, str]) -> None:
    """peft's own two files. `start` goes into the config: what the adapter belongs on, by Hub id and commit
    (`base_model_name_or_path`, `revision`) or by its artifact's key; never a path of this machine.
    """
    for name, value in start.items():
        setattr(model.peft_config["default"], name, value)
    model.save_pretrained(str(folder), save_embedding_layers=False)  # "auto" would look the key up on the Hub
    (folder / "README.md").unlink(missing_ok=True)  # a card with no word on data or figures


def _lora(job: Job) -> Lora | None:
    given = job.config.get("model", {}).get("lora")
    return Lora.model_validate(given) if given else None
