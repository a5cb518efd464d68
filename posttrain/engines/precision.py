"""Which float type this machine computes faster, measured on products of a model's own shapes.

What a processor claims to support says little: bfloat16 products are 4 times as fast as float32 ones on one CPU with
AVX-512 BF16, and half as fast on another.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from posttrain.engines.fast_linear import Product, can_quantize, linear_weight

CLEARLY = 1.2  # times as fast: smaller differences are within the noise of a shared machine
REPEATS = 3  # that must agree
_TRIES = 3  # of so many repeats each, where they contradict each other
_HOPELESS = 0.5  # times as fast, or less: no other load explains that, and such a way is the slowest to measure
_ROWS = 128  # of a product: completions under way at once, or tokens of a micro-batch
_MOST = 1024  # of a product's width and height; larger ones are measured so and scaled, or it takes seconds


Measured = tuple[torch.Tensor, torch.Tensor, float]  # a weight, what it multiplies, how many of it a model has


@dataclass(frozen=True)
class Choice:
    """The faster of two ways, `name`, and how many times as fast the second was as the first in each repeat."""

    name: str
    ratios: tuple[float, ...]


def clearly_faster(first: tuple[str, Callable[[], float]], second: tuple[str, Callable[[], float]]) -> Choice:
    """The second way if it is at least `CLEARLY` times as fast as the first in each repeat, else the first.

    Each way is a name and a function that gives its seconds. Where repeats contradict each other (some say so, some do
    not), another process was in the way: they are taken again, and if they never agree it is the first. Where the
    second takes twice as long in the first repeat, that is the only one.
    """
    ratios: tuple[float, ...] = ()
    for _ in range(_TRIES):
        ratios = (first[1]() / second[1](),)
        if ratios[0] <= _HOPELESS:
            break
        ratios += tuple(first[1]() / second[1]() for _ in range(REPEATS - 1))
        faster = [ratio >= CLEARLY for ratio in ratios]
        if all(faster):
            return Choice(second[0], ratios)
        if not any(faster):
            break
    return Choice(first[0], ratios)


def sampling_dtype(shapes: Mapping[tuple[int, int], int], device: str) -> Choice:
    """`float32` or `bfloat16` for the products of an engine. `shapes`: (out, in) of the weights, and how many.

    On a GPU nothing is measured: bfloat16 where it has it.
    """
    if device.startswith("cuda"):
        return Choice("bfloat16" if torch.cuda.is_bf16_supported() else "float32", ())
    with one_thread():
        return faster_type(list(products(shapes, _ROWS)), _timed)


Timed = Callable[[Sequence[Measured], torch.dtype], Callable[[], float]]


def faster_type(made: Sequence[Measured], timed: Timed, product: Timed | None = None) -> Choice:
    """`float32` or `bfloat16` for these products. `timed`: gives a function that takes the seconds in a type, of them
    and of what else there is; `product`: of them alone, if `timed` has more.

    The smallest product is looked at first: where bfloat16 takes four times as long, as on a CPU that has none, the
    others would only take seconds to say the same.
    """
    if not made:
        return Choice("float32", ())
    smallest, alone = [min(made, key=lambda one: one[0].numel())], product or timed
    ratio = alone(smallest, torch.float32)() / alone(smallest, torch.bfloat16)()
    if ratio <= _HOPELESS / 2:
        return Choice("float32", (ratio,))
    return clearly_faster(("float32", timed(made, torch.float32)), ("bfloat16", timed(made, torch.bfloat16)))


def rates() -> dict[str, float]:
    """GFLOP/s of products (128, 1024) · (1024, 1024) on one thread of this CPU, by type: float32, bfloat16, and int8
    where the CPU has it."""
    found = {}
    with one_thread():
        for dtype in (torch.float32, torch.bfloat16, *([torch.int8] if can_quantize() else [])):
            product, x = Product(torch.randn(_MOST, _MOST), None, dtype), torch.randn(_ROWS, _MOST)
            operations = 2 * _ROWS * _MOST * _MOST
            found[str(dtype).removeprefix("torch.")] = operations / 1e9 / seconds(lambda: product(x))  # noqa: B023
    return found


def linear_shapes(model: torch.nn.Module) -> dict[tuple[int, int], int]:
    """(out, in) of the model's linear layers, GPT-2's Conv1D too, and the number of each. The model may be on the meta
    device. Experts that are kept as one three-dimensional weight are not in it."""
    weights = (linear_weight(layer) for layer in model.modules())
    return dict(Counter((weight.shape[0], weight.shape[1]) for weight, _ in filter(None, weights)))


def seconds(work: Callable[[], object], at_least: float = 0.002) -> float:
    """CPU seconds of this thread for one call of `work`: the best of three, each of as many calls as take `at_least`
    seconds."""
    best = float("inf")
    for _ in range(3):
        calls, begun = 0, time.thread_time()
        while (spent := time.thread_time() - begun) < at_least:
            work()
            calls += 1
        best = min(best, spent / calls)
    return best


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch computes on one thread, whose CPU time other processes disturb little."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def products(shapes: Mapping[tuple[int, int], int], rows: int) -> Iterator[Measured]:
    """A weight (out, in) of each shape, an input (rows, in) for it, and how many such products the model has; of large
    shapes smaller ones, and as many more."""
    for (height, width), count in shapes.items():
        out, taken = min(height, _MOST), min(width, _MOST)
        yield torch.randn(out, taken), torch.randn(rows, taken), count * (height * width) / (out * taken)


def _timed(made: Sequence[Measured], dtype: torch.dtype) -> Callable[[], float]:
    """A function that gives the seconds of these products, all of the model's."""
    packed = [(Product(weight, None, dtype), x, count) for weight, x, count in made]
    return lambda: sum(count * seconds(lambda product=product, x=x: product(x)) for product, x, count in packed)
