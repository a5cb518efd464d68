"""LoRA's products on a CPU: x·Wᵀ + s·(x·Aᵀ)·Bᵀ in one step of autograd.

peft's own forward writes and reads the output's size five times more (B's product, its scaled copy, the sum, and back)
and casts the input to float32 and again to autocast's type, which takes longer than products of rank 16.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from peft.tuners.lora import Linear


def fuse(model: torch.nn.Module) -> None:
    """Replaces the forward of each plain LoRA layer on a CPU: one adapter, no variant such as DoRA, no dropout."""
    cast = _Cast()
    for layer in model.modules():
        if type(layer) is Linear and _plain(layer):
            layer.forward = functools.partial(_forward, layer, cast)


def _plain(layer: Any) -> bool:
    base, names = layer.base_layer, list(layer.lora_A)
    return (
        type(base) is torch.nn.Linear
        and base.weight.device.type == "cpu"
        and not base.weight.requires_grad
        and len(names) == 1
        and not layer.lora_variant
        and isinstance(layer.lora_dropout[names[0]], torch.nn.Identity)
        and layer.lora_A[names[0]].bias is None
        and layer.lora_B[names[0]].bias is None
    )


class _Cast:
    """An input in autocast's type: once for the layers that read it one after the other, as query, key and value do."""

    def __init__(self) -> None:
        self._given: weakref.ref[torch.Tensor] | None = None
        self._made = torch.empty(0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return x
        if self._given is None or self._given() is not x:
            self._given, self._made = weakref.ref(x), x.to(torch.get_autocast_dtype("cpu"))
        return self._made


def _forward(self: Any, cast: _Cast, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
    if given or named or self.disable_adapters or self.merged:
        return Linear.forward(self, x, *given, **named)
    (name,) = self.lora_A
    base, one, other = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
    return LoraProduct.apply(cast(x), base.weight, base.bias, one, other, self.scaling[name])


class LoraProduct(torch.autograd.Function):
    """x (…, I); weight (O, I) and bias (O,) or None, without gradient; A (r, I), B (O, r), scale s. Gives (…, O) in
    the type of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows, dtype = x.reshape(-1, x.shape[-1]), x.dtype
        weight, a, b = weight.to(dtype), a.to(dtype), (scale * b).to(dtype)
        low = rows @ a.t()
        out = torch.nn.functional.linear(rows, weight, None if bias is None else bias.to(dtype)).addmm_(low, b.t())
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        of_out = gradients[0].reshape(len(rows), -1)
        of_low = of_out @ b
        of_x = (of_out @ weight).addmm_(of_low, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_low.t() @ rows, ctx.scale * (of_out.t() @ low), None
