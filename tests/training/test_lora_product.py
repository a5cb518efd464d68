"""LoRA's fused products give what peft's layers give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.training import lora_product


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(48, 64), torch.nn.Linear(64, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def adapted(**options: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"], init_lora_weights=False, **options)
    return get_peft_model(Layers(), config)


def computed(model: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    """The output, and the gradients of the input and the adapters."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 48, generator=draw, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = model(x)
    wanted = [x, *(each for each in model.parameters() if each.requires_grad)]
    found = torch.autograd.grad((out.float() * torch.randn(out.shape, generator=draw)).sum(), wanted)
    assert out.dtype == dtype and all(each.dtype == torch.float32 for each in found)
    return [out.detach().float(), *found]


def fused(model: Any) -> Any:
    lora_product.fuse(model)
    return model


def test_in_float32_output_and_gradients_are_those_of_peft() -> None:
    for one, other in zip(computed(fused(adapted()), torch.float32), computed(adapted(), torch.float32), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_they_are_as_near_to_the_exact_ones_as_those_of_peft() -> None:
    ours, theirs = computed(fused(adapted()), torch.bfloat16), computed(adapted(), torch.bfloat16)
    for one, other, exact in zip(ours, theirs, computed(adapted(), torch.float32), strict=True):
        assert (one - exact).norm() < 1.2 * (other - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}])
def test_what_is_more_than_two_products_stays_pefts(options: dict[str, Any]) -> None:
    model = fused(adapted(**options))
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_a_disabled_or_merged_adapter_is_not_added() -> None:
    model, x = fused(adapted()), torch.randn(2, 48)
    with_it = model(x)
    with model.disable_adapter():
        assert not torch.allclose(model(x), with_it)
    torch.testing.assert_close(model.merge_and_unload()(x), with_it, atol=1e-5, rtol=1e-5)
