"""Small random models and a byte-level tokenizer, made in memory."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|assistant|>{{ m.content }}</s>{% else %}<|user|>{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PAD, BOS, EOS = 0, 1, 2

_COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 96,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_GPT2 = {
    "vocab_size": 300,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 96,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
# Sliding windows shorter than the texts, so that they matter.
KINDS: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "qwen2": _COMMON,
    "qwen3": _COMMON,
    "mistral": {**_COMMON, "sliding_window": 12},
    "gemma": _COMMON,
    "gemma2": {**_COMMON, "sliding_window": 12, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_COMMON, "sliding_window": 12, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    "gpt2": _GPT2,
    "bloom": {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "ministral": {**_COMMON, "sliding_window": 12},
    "ministral3": {
        **_COMMON,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 96,
        },
    },
    "phi3": _COMMON,
    "gpt_neox": {**_COMMON, "num_key_value_heads": None},
    "gpt_bigcode": _GPT2,
    "opt": {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "falcon": {name: value for name, value in _COMMON.items() if name not in ("head_dim", "num_key_value_heads")},
    "stablelm": _COMMON,
    "smollm3": _COMMON,
    "olmo2": _COMMON,
    "olmoe": {**_COMMON, **_EXPERTS},
    "granite": _COMMON,
    "cohere": _COMMON,
    "mixtral": {**_COMMON, **_EXPERTS},
    "qwen2_moe": {**_COMMON, **_EXPERTS},
    "qwen3_moe": {**_COMMON, **_EXPERTS},
    "gpt_oss": {
        **_COMMON,
        **_EXPERTS,
        "sliding_window": 12,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 300 tokens at most and the chat template above."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["Mia has 7 apples and buys 12 more. How many has she?"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    return fast


def causal_lm(kind: str, **changes: Any) -> Any:
    return _random(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**KINDS[kind], **changes})))


def reward_model(kind: str, **changes: Any) -> Any:
    config = AutoConfig.for_model(kind, **{**KINDS[kind], "num_labels": 1, **changes})
    return _random(AutoModelForSequenceClassification.from_config(config))


def _random(model: Any) -> Any:
    """Weights far larger than an initialisation's, so that a mistake in attention shows in the logits."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if part.ndim > 1:
                part.normal_(std=0.15)
            elif "norm" in name or "ln_" in name:
                part.add_(torch.randn_like(part), alpha=0.1)
    return model.float().eval()
