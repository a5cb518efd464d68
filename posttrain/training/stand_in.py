"""Makes a small model of the same type, which trains in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from posttrain.models.structure import first_line

LLAMA = "a small Llama"
# What transformers raises of sizes that do not go together.
REFUSALS = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError, ImportError)
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
# Each name that configs of transformers have for a size, and how large it is in small. What a type derives from these
# (heads of a hidden size) stays whole: all are multiples of one another.
SMALL = {
    **dict.fromkeys((*_LAYERS, "num_key_value_heads", "num_experts_per_tok"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_local_experts", "num_experts"), 4),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 64),
    "head_dim": 8,
    "num_hidden_groups": 1,
}


def stand_ins(model: Path, vocabulary: int, folder: Path) -> tuple[list[tuple[str, Path]], str | None]:
    """Name and folder of a small model of the same type, then of a small Llama, with random weights. And the reason if
    the first is missing: transformers cannot make every type at this size.
    """
    config = AutoConfig.from_pretrained(model)
    vocabulary = max(vocabulary, getattr(config, "vocab_size", None) or 0)
    ids = {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = LlamaConfig()
    sizes: dict[str, Any] = {name: size for name, size in SMALL.items() if hasattr(known, name)}
    llama = LlamaConfig(vocab_size=vocabulary, **ids, **sizes)
    found, cannot = [], None
    for name, small in ((config.model_type, lambda: _small(config)), (LLAMA, lambda: llama)):
        try:
            made: Any = AutoModelForCausalLM.from_config(small(), dtype=torch.float32)
        except REFUSALS as error:  # this type has sizes of its own
            cannot = f"a small {name} cannot be made ({first_line(error)})"
            continue
        made.save_pretrained(folder / str(len(found)))
        found.append((name, folder / str(len(found))))
    return found, cannot


def _small(config: PretrainedConfig) -> PretrainedConfig:
    settings = {name: value for name, value in config.to_dict().items() if name != "quantization_config"}
    sizes: dict[str, Any] = {
        name: min(size, settings[name]) for name, size in SMALL.items() if isinstance(settings.get(name), int)
    }
    layers = next((sizes[name] for name in _LAYERS if name in sizes), None)
    kinds = settings.get("layer_types")
    if layers and isinstance(kinds, list):  # one of each kind, first those that come first
        sizes["layer_types"] = [*dict.fromkeys(kinds), *kinds][:layers]
    return type(config).from_dict({**settings, **sizes})
