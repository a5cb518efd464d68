"""Matrix products on a CPU: a model's linear layers, made faster in place.

bfloat16 products with float32 everywhere else: element-wise work is slower in bfloat16 on a CPU, and casts are cheap.
float32 products through oneDNN's packed weights where torch has them: on some processors twice as fast as the default.
int8 products where somebody asks for them: about 2 % off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def rows_to_pad(rows: int, device: torch.device) -> int:
    """Padding rows to add to `rows`: oneDNN compiles a kernel for each new number of rows, which can take longer than
    the product, so there should be few distinct ones. At most an eighth, or up to the next multiple of 32; below 32 up
    to the next power of 2."""
    if device.type != "cpu" or not _can_pack(torch.float32):
        return 0
    if rows <= 32:
        return (1 << (rows - 1).bit_length()) - rows
    return -rows % max(32, 1 << (rows.bit_length() - 4))


class Product:
    """x W^T + b in the dtype that is fastest. Takes any float dtype; gives `dtype`, float32 where that is int8."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        if dtype == torch.int8:
            self.quantized = _Quantized(weight, bias)
            return
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.packed = weight.device.type == "cpu" and _can_pack(dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, 256)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.dtype == torch.int8:
            return self.quantized(x.float())
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.weight, self.bias, "none", [], "")
        return nn.functional.linear(x.to(self.dtype), self.weight, self.bias)


# By the name in a config: the operation, and what oneDNN calls it and its variant.
ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str, str]] = {
    "silu": (nn.functional.silu, "swish", ""),
    "swish": (nn.functional.silu, "swish", ""),
    "gelu_pytorch_tanh": (functools.partial(nn.functional.gelu, approximate="tanh"), "gelu", "tanh"),
}


class GatedProduct:
    """f(x G^T + g) * (x U^T + u), the first half of a gated MLP."""

    def __init__(self, gate: Any, up: Any, scale: torch.Tensor, activation: str, dtype: torch.dtype) -> None:
        """`gate` and `up` are linear layers; `scale` (in,) multiplies what they take; `activation`: f."""
        self.activation, self.ending, self.variant = ACTIVATIONS[activation]
        # Where oneDNN can end a product with the activation, two products are faster than one; in float32 they are not.
        self.fused = dtype == torch.bfloat16 and scale.device.type == "cpu" and _can_pack(dtype)
        if self.fused:
            self.gate, self.up = (Product(layer.weight * scale, layer.bias, dtype) for layer in (gate, up))
            return
        bias = None if gate.bias is None else torch.cat([gate.bias, up.bias])
        self.joint = Product(torch.cat([gate.weight, up.weight]) * scale, bias, dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            multiply, gate, up = torch.ops.mkldnn._linear_pointwise, self.gate, self.up
            x = x.to(gate.dtype)
            opened = multiply(x, gate.weight, gate.bias, self.ending, [], self.variant)
            return multiply.binary(x, opened, up.weight, up.bias, "mul")
        gate, up = self.joint(x).chunk(2, dim=-1)
        return self.activation(gate).mul_(up)


class Linear(nn.Module):
    """A `Product` in the place of a float32 linear layer: takes and gives float32. `weight` is there to be read."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias, self.product = weight, bias, Product(weight, bias, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x).float()


def replace_linears(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces every linear layer of `model` (GPT-2's Conv1D too), in place, by one that computes in `dtype`."""
    if dtype == torch.float32 and not _can_pack(dtype):
        return
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            found = linear_weight(layer)
            if found is not None:
                weight, bias = found
                setattr(parent, name, Linear(weight, bias, dtype))


def linear_weight(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Weight (out, in) and bias of a layer that is nothing but a linear one."""
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    if type(layer).__name__ == "Conv1D" and getattr(layer, "nf", None) == layer.weight.shape[-1]:
        return layer.weight.t().contiguous(), layer.bias
    return None


class _Quantized:
    """x W^T + b in 8 bits: a scale for each output of the weights, and one for each row of x, so that a row's result
    depends on no other. x is taken to 0 … 255 around 128, which CPUs with VNNI or AMX multiply."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        weight = weight.detach().float()
        self.scale = (weight.abs().amax(1) / 127).clamp_(min=1e-30)
        self.weight = torch.ops.onednn.qlinear_prepack((weight / self.scale[:, None]).round_().to(torch.int8), None)
        self.zero = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = None if bias is None else bias.detach().float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp_(min=1e-30)
        whole = (x / scale).round_().add_(128).to(torch.uint8)
        out = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, 128, self.weight, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        ).mul_(scale)
        return out if self.bias is None else out.add_(self.bias)


def can_quantize() -> bool:
    """Whether this CPU multiplies 8-bit numbers as `_Quantized` needs it: without overflow, and fast."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported()


@functools.cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's packed products of this type on this CPU (private operators: absent ones are no
    error). Those of bfloat16 need AVX-512 or AMX, or Arm's counterpart: with AVX2 alone torch refuses to pack."""
    ops = torch.ops.mkldnn
    there = torch.backends.mkldnn.is_available() and all(
        hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )
    if dtype == torch.bfloat16:
        return there and hasattr(ops, "_is_mkldnn_bf16_supported") and ops._is_mkldnn_bf16_supported()
    return there and dtype == torch.float32
