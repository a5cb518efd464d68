"""FSDP2, by accelerate: each rank holds a part of the weights, gradients and optimizer."""

from __future__ import annotations

from typing import Any, cast

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

# For TrainingArguments.
FIELDS: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_ram_efficient_loading": False,
    },
}


class ShardsOnCPU:
    """For a trainer: lets FSDP2 run on CPUs too, where accelerate ignores it and would train with DDP."""

    def create_accelerator_and_postprocess(self) -> None:
        trainer: Any = self
        super().create_accelerator_and_postprocess()  # pyright: ignore[reportAttributeAccessIssue] # the trainer's
        state = AcceleratorState()
        if trainer.args.fsdp_plugin_args is not None and state.distributed_type == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
            trainer.is_fsdp_enabled = True


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor] | None:
    """The weights of a sharded model on the CPU of rank 0, none on others; None where the model is not sharded. Every
    rank takes part."""
    model: Any = trainer.model
    if not isinstance(model, FSDPModule):
        return None
    options: Any = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole: Any = get_model_state_dict(cast("torch.nn.Module", model), options=options)
    return whole
