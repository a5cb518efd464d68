"""Llama-like models without the overhead: the same function as transformers' forward, in a third of the operations.

For a model of a few million parameters most of a step is not arithmetic but the cost of starting each operation, so
projections are joined, norm weights folded into the products after them and rotary pairs laid side by side, where
turning them is one complex product. Llama, Mistral, Qwen2, Qwen3 and Gemma 3 fit; the start-up check has the last word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import pad, rms_norm

from posttrain.engines.attention import Options, Unsupported
from posttrain.engines.fast_linear import ACTIVATIONS, GatedProduct, Product, rows_to_pad

_FITTING = (
    *(
        f"{family}For{task}"
        for family in ("Llama", "Mistral", "Qwen2", "Qwen3")
        for task in ("CausalLM", "SequenceClassification")
    ),
    *("Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"),
)
_ROPES = ("default", "linear", "llama3", "yarn")  # the others depend on the length of the text

Attend = Callable[[int, torch.Tensor, Options], torch.Tensor]


class LeanLlama:
    """A copy of a causal language model's or reward model's weights, rearranged.

    `dtype` is that of the products, and `attended` what attention gets: the same, or float32 where products are int8.
    The residual stream is float32 on a CPU.

    Raises:
        Unsupported: the model is of another kind.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        if type(model).__name__ not in _FITTING:
            raise Unsupported(f"no lean form of a {type(model).__name__}")
        config, body = model.config, model.model
        self.gemma = type(model).__name__.startswith("Gemma3")
        self.activation: str = config.hidden_activation if self.gemma else config.hidden_act
        # Gemma 3's kinds of layers, those with a window and those without, turn at speeds of their own.
        ropes = config.rope_parameters if self.gemma else {None: config.rope_parameters}
        rope_types = {rope["rope_type"] for rope in ropes.values()}
        if self.activation not in ACTIVATIONS or not rope_types <= set(_ROPES):
            raise Unsupported(f"no lean form of {self.activation} with rope {', '.join(sorted(rope_types))}")
        if getattr(config, "final_logit_softcapping", None) is not None:
            raise Unsupported("no lean form of capped logits")
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.dim: int = body.layers[0].self_attn.head_dim
        self.one_window = type(model).__name__.startswith("Mistral")  # the others' layers each say theirs
        self.eps: float = config.rms_norm_eps
        self.kept = torch.float32 if model.device.type == "cpu" else dtype
        self.attended = torch.float32 if dtype == torch.int8 else dtype
        self.embedding = body.embed_tokens.weight.detach()
        self.embedding_scale: torch.Tensor | None = getattr(body.embed_tokens, "embed_scale", None)
        self.rotary, self.rope_kinds = body.rotary_emb, list(ropes)
        self.turns = self._turns(256, model.device)
        self.layers = [_Layer(layer, self, dtype) for layer in body.layers]
        head = model.score if hasattr(model, "score") else model.lm_head
        self.head = Product(head.weight * self.scale(body.norm), head.bias, dtype)
        self.hidden: int = config.hidden_size

    def scale(self, norm: Any) -> torch.Tensor:
        """What a norm multiplies by."""
        return 1 + norm.weight.detach().float() if self.gemma else norm.weight

    def _turns(self, length: int, device: torch.device) -> dict[str | None, torch.Tensor]:
        """The rotation of each position and pair, (length, dim / 2) complex, for each kind of layer."""
        like, at = torch.zeros(1, dtype=torch.float32, device=device), torch.arange(length, device=device)[None]
        half, turns = self.dim // 2, {}
        for kind in self.rope_kinds:
            cos, sin = self.rotary(like, at) if kind is None else self.rotary(like, at, kind)
            if cos.shape[-1] != self.dim:
                raise Unsupported("no lean form of partly rotated heads")
            turns[kind] = torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())
        return turns

    def __call__(self, ids: torch.Tensor, position: torch.Tensor, longest: int, attend: Attend) -> torch.Tensor:
        """Last hidden states before the head, (N, hidden). ids, position: (N,); every position is below `longest`.

        `attend(layer, projections, options)` gets (N, heads + 2 * kv_heads, dim) and gives (N, heads * dim).
        """
        rows, more = len(ids), rows_to_pad(len(ids), ids.device)
        ids, position = pad(ids, (0, more)), pad(position, (0, more))
        if longest > min(map(len, self.turns.values())):
            self.turns = self._turns(2 * longest, position.device)
        turn = {kind: turns.index_select(0, position)[:, None] for kind, turns in self.turns.items()}
        stream = self.embedding.index_select(0, ids)
        if self.embedding_scale is not None:
            stream *= self.embedding_scale.to(stream.dtype)
        stream = stream.to(self.kept)
        for at, layer in enumerate(self.layers):
            layer(at, stream, turn[layer.rope_kind], attend, rows)
        return stream[:rows]

    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """(N, vocab), or (N, 1) of a reward model, from (N, hidden)."""
        rows, more = len(stream), rows_to_pad(len(stream), stream.device)
        return self.head(rms_norm(_filled(stream, more), (self.hidden,), eps=self.eps))[:rows]


def _filled(x: torch.Tensor, more: int) -> torch.Tensor:
    """(N, D) with so many rows of zeros; `pad` would copy it even for none."""
    return pad(x, (0, 0, 0, more)) if more else x


class _Layer:
    def __init__(self, layer: Any, whole: LeanLlama, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.whole = whole
        # The scores' scaling is folded into what makes the queries: their norm's weight where there is one.
        normed = hasattr(attention, "q_norm")
        scales = (1.0 if normed else attention.scaling, 1.0, 1.0)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight = torch.cat([self._paired(part.weight, at < 2) * scales[at] for at, part in enumerate(projections)])
        bias = None
        if attention.q_proj.bias is not None:
            bias = torch.cat([self._paired(part.bias, at < 2) * scales[at] for at, part in enumerate(projections)])
        # In 8 bits queries and keys would cost more than half of all that is lost, for a sixth of the products.
        exact = torch.float32 if dtype == torch.int8 else dtype
        self.qkv = Product(weight * whole.scale(layer.input_layernorm), bias, exact)
        self.out = Product(attention.o_proj.weight, attention.o_proj.bias, dtype)
        # Gemma 3 norms what attention and MLP give, too: its second norm is behind attention, its third before the MLP.
        before_mlp = layer.pre_feedforward_layernorm if whole.gemma else layer.post_attention_layernorm
        behind = (layer.post_attention_layernorm, layer.post_feedforward_layernorm) if whole.gemma else ()
        self.behind = [whole.scale(norm).to(whole.kept) for norm in behind] or [None, None]
        self.gated = GatedProduct(mlp.gate_proj, mlp.up_proj, whole.scale(before_mlp), whole.activation, dtype)
        self.down = Product(mlp.down_proj.weight, mlp.down_proj.bias, dtype)
        self.rope_kind: str | None = attention.layer_type if whole.gemma else None
        everywhere = getattr(attention.config, "sliding_window", None) if whole.one_window else None
        window = getattr(attention, "sliding_window", everywhere)
        self.options = Options(1.0, window, getattr(attention, "attn_logit_softcapping", None))
        self.qk_weight: torch.Tensor | None = None
        if normed:
            of_queries = self._paired(whole.scale(attention.q_norm), True).detach().float() * attention.scaling
            of_keys = self._paired(whole.scale(attention.k_norm), True).detach().float()
            self.qk_weight = torch.cat([of_queries.expand(whole.heads, -1), of_keys.expand(whole.kv_heads, -1)])

    def _paired(self, part: torch.Tensor, rotated: bool) -> torch.Tensor:
        """Rows of each head reordered so that the two of a rotary pair (i, i + dim / 2) are neighbours."""
        if not rotated:
            return part
        half = self.whole.dim // 2
        return part.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2)

    def __call__(self, at: int, stream: torch.Tensor, turn: torch.Tensor, attend: Attend, rows: int) -> None:
        """Adds to `stream`, of which the first `rows` are attended to and the rest is filling."""
        whole = self.whole
        rotated = whole.heads + whole.kv_heads
        joint = self.qkv(rms_norm(stream, (whole.hidden,), eps=whole.eps))
        joint = joint.float().view(len(stream), rotated + whole.kv_heads, whole.dim)
        if self.qk_weight is not None:
            joint[:, :rotated] = rms_norm(joint[:, :rotated], (whole.dim,), eps=whole.eps) * self.qk_weight
        pairs = torch.view_as_complex(joint.unflatten(-1, (-1, 2)))[:, :rotated]
        pairs *= turn
        attended = attend(at, joint[:rows].to(whole.attended), self.options)
        self._add(stream, self.out(_filled(attended, len(stream) - rows)), self.behind[0])
        self._add(stream, self.down(self.gated(rms_norm(stream, (whole.hidden,), eps=whole.eps))), self.behind[1])

    def _add(self, stream: torch.Tensor, part: torch.Tensor, scale: torch.Tensor | None) -> None:
        """Adds a part to `stream`, normed where there is a norm behind it."""
        whole = self.whole
        stream += part if scale is None else rms_norm(part.to(whole.kept), (whole.hidden,), eps=whole.eps) * scale
