"""The choice between two ways by their time, and the products that are timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from support.tiny_models import causal_lm

from posttrain.engines import fast_linear, precision
from posttrain.engines.fast_linear import GatedProduct, Product, can_quantize
from posttrain.engines.load import pick_dtype
from posttrain.engines.precision import (
    Choice,
    Measured,
    clearly_faster,
    faster_type,
    linear_shapes,
    products,
    sampling_dtype,
)


def taking(*seconds: float) -> Callable[[], float]:
    """A way whose times are these, one after the other."""
    times: Iterator[float] = iter(seconds)
    return lambda: next(times)


@pytest.mark.parametrize(
    ("second", "chosen"),
    [
        ([0.5, 0.5, 0.5], "second"),
        ([0.8, 0.8, 0.8], "second"),  # 1.25 times
        ([0.9, 0.9, 0.9], "first"),  # 1.11 times
        ([1.5, 1.5, 1.5], "first"),
        ([4.0], "first"),  # so slow that it is not measured again
        ([0.5, 0.9, 0.5, 0.5, 0.5, 0.5], "second"),  # disturbed, and clear when taken again
        ([0.5, 0.9, 0.5] * 3, "first"),  # never clear
    ],
)
def test_the_second_way_is_taken_where_it_is_clearly_faster_in_each_repeat(second: list[float], chosen: str) -> None:
    choice = clearly_faster(("first", lambda: 1.0), ("second", taking(*second)))
    assert choice.name == chosen
    assert choice.ratios == pytest.approx([1 / each for each in second[-3:]])


def test_the_shapes_are_those_of_all_linear_layers() -> None:
    with torch.device("meta"):
        llama, gpt2 = causal_lm("llama"), causal_lm("gpt2")
    config = llama.config
    wide, narrow = config.intermediate_size, config.hidden_size
    assert linear_shapes(llama)[(wide, narrow)] == 2 * config.num_hidden_layers  # gate and up
    assert linear_shapes(llama)[(config.vocab_size, narrow)] == 1
    assert (3 * gpt2.config.n_embd, gpt2.config.n_embd) in linear_shapes(gpt2)  # Conv1D, turned


def test_of_a_large_weight_a_part_is_measured_as_often_as_it_fits() -> None:
    found = list(products({(49_152, 576): 1, (576, 576): 60}, rows=8))
    assert [(tuple(weight.shape), tuple(x.shape)) for weight, x, _ in found] == [
        ((1024, 576), (8, 576)),
        ((576, 576), (8, 576)),
    ]
    assert [count for _, _, count in found] == [48, 60]


def test_auto_is_what_is_measured_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {torch.float32: 1.0, torch.bfloat16: 0.5}
    monkeypatch.setattr(precision, "_timed", lambda shapes, dtype: lambda: fast[dtype])
    assert sampling_dtype({(8, 8): 1}, "cpu").name == "bfloat16"
    fast[torch.bfloat16] = 2.0
    assert sampling_dtype({(8, 8): 1}, "cpu").name == "float32"


def test_where_a_type_is_hopeless_one_small_product_says_so() -> None:
    timed: list[tuple[tuple[int, ...], ...]] = []

    def slow_in_bfloat16(made: Sequence[Measured], dtype: torch.dtype) -> Callable[[], float]:
        timed.append(tuple(tuple(weight.shape) for weight, _, _ in made))
        return lambda: 1.0 if dtype == torch.float32 else 5.0

    choice = faster_type(list(products({(64, 64): 2, (16, 32): 1}, rows=4)), slow_in_bfloat16)
    assert choice == Choice("float32", (0.2,)) and timed == [((16, 32),)] * 2
    assert faster_type([], slow_in_bfloat16) == Choice("float32", ())


def test_the_first_look_is_at_a_product_alone() -> None:
    products_alone = {torch.float32: 1.0, torch.bfloat16: 0.5}  # while what else there is takes ten times as long

    def all_of_it(made: Sequence[Measured], dtype: torch.dtype) -> Callable[[], float]:
        return lambda: products_alone[dtype] + (10.0 if dtype == torch.bfloat16 else 0.0)

    choice = faster_type(
        list(products({(64, 64): 2}, rows=4)), all_of_it, lambda made, dtype: lambda: products_alone[dtype]
    )
    assert choice == Choice("float32", (1.0 / 10.5,))  # which the whole says, not the look


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_named_type_is_not_measured(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "seconds", lambda *_: pytest.fail("measured"))
    assert pick_dtype(dtype, "cpu", causal_lm("llama")) == getattr(torch, dtype)


def test_the_threads_are_what_they_were_after_a_measurement() -> None:
    before = torch.get_num_threads()
    choice = sampling_dtype({(64, 64): 2}, "cpu")
    assert choice.name in ("float32", "bfloat16") and len(choice.ratios) in (1, 3)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not can_quantize(), reason="needs a CPU with VNNI or AMX")
def test_a_row_in_8_bits_is_near_and_depends_on_no_other() -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(96, 64), torch.randn(96), torch.randn(40, 64)
    x[:, 3] *= 20  # as in real models, one input of a row is far larger than the others
    product = Product(weight, bias, torch.int8)
    exact = x.double() @ weight.double().T + bias
    assert ((product(x) - exact).norm() / exact.norm()).item() < 0.05
    assert torch.equal(product(x)[7:8], product(x[7:8]))
    assert torch.equal(product(torch.zeros(2, 64)), bias.expand(2, -1))


def test_where_torch_packs_no_bfloat16_weights_products_are_its_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with AVX2 alone, where packing raises."""
    monkeypatch.setattr(fast_linear, "_can_pack", lambda dtype: dtype == torch.float32)
    weight, x = torch.randn(48, 32), torch.randn(5, 32)
    product = Product(weight, None, torch.bfloat16)
    assert torch.equal(product(x), torch.nn.functional.linear(x.bfloat16(), weight.bfloat16()))
    made = GatedProduct(torch.nn.Linear(32, 48), torch.nn.Linear(32, 48), torch.ones(32), "silu", torch.bfloat16)
    assert made(x).shape == (5, 48)
    assert set(precision.rates()) >= {"float32", "bfloat16"}
