"""A Llama of some hundred weights as a GGUF file, tokenizer included."""

from __future__ import annotations

from typing import Any

import numpy as np

_VOCABULARY = ["<s>", "<|endoftext|>", "<unk>", *map(chr, range(ord("a"), ord("z") + 1)), "ab"]
_WIDTH, _INNER, _HEADS = 16, 24, 2
_LAYER = {
    "attn_norm": (_WIDTH,),
    "attn_q": (_WIDTH, _WIDTH),
    "attn_k": (_WIDTH, _WIDTH),
    "attn_v": (_WIDTH, _WIDTH),
    "attn_output": (_WIDTH, _WIDTH),
    "ffn_norm": (_WIDTH,),
    "ffn_gate": (_INNER, _WIDTH),
    "ffn_up": (_INNER, _WIDTH),
    "ffn_down": (_WIDTH, _INNER),
}


def write(writer: Any) -> dict[str, Any]:
    """Writes it with a GGUFWriter for the architecture `llama`. Returns its tensors by their names there."""
    shapes = {
        "token_embd": (len(_VOCABULARY), _WIDTH),
        "output_norm": (_WIDTH,),
        "output": (len(_VOCABULARY), _WIDTH),
        **{f"blk.0.{name}": shape for name, shape in _LAYER.items()},
    }
    random = np.random.default_rng(0)
    tensors = {f"{name}.weight": random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(_VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(_VOCABULARY)
    writer.add_token_types([3, 3, 2, *(1 for _ in _VOCABULARY[3:])])  # control, control, unknown, normal
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
