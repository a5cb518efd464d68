"""What a stage takes, from what a probe measured of it in small. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.stages.amounts import Amounts
from posttrain.stages.registry import STAGES

_PASS = 1 / 3  # of a step: a step is a forward pass and a backward pass, which is about two


@dataclass(frozen=True)
class Measured:
    """One stage as it was measured. `seconds`: of a core, or of the GPU; `loading`: of these, for its models; `step`:
    for one more step of a training. `units`: completions, rows, or steps. `memory`, `disk`: bytes, of one process."""

    stage: str
    seconds: float
    loading: float
    units: float
    step: float | None
    memory: int
    disk: int
    metrics: Mapping[str, object]


def together(some: Sequence[Measured]) -> Measured:
    """Several measurements of a stage that samples as one; of its metrics, the sums of tokens and completions."""
    metrics = {name: sum(float(str(one.metrics[name])) for one in some) for name in ("tokens", "completions")}
    loading = sum(one.loading for one in some)
    return Measured(
        some[0].stage,
        seconds=sum(one.seconds for one in some) - loading + loading / len(some),
        loading=loading / len(some),
        units=sum(one.units for one in some),
        step=None,
        memory=max(one.memory for one in some),
        disk=sum(one.disk for one in some),
        metrics=metrics,
    )


@dataclass(frozen=True)
class Cost:
    """`fixed` and `unit` in seconds, the latter for one unit; `loading` is what each process pays. Memory and disk in
    bytes, `disk_unit` for one unit."""

    fixed: float
    loading: float
    unit: float
    memory: float
    disk: float
    disk_unit: float

    def seconds(self, units: float, processes: int = 1) -> float:
        return self.fixed + self.loading * processes + self.unit * units


def work(stage: str, amounts: Amounts) -> float:
    """The units of a stage: completions, rows, or steps, and of passes without a step their share of one."""
    if STAGES[stage].trained:
        batch = amounts.rows / amounts.steps if amounts.steps else 0.0
        return steps_and_passes(amounts.steps, amounts.passes, batch)
    return amounts.completions if STAGES[stage].samples else amounts.rows


def steps_and_passes(steps: int, passes: int, batch: float) -> float:
    """Steps, and rows that a model reads beside them, as so many steps. `batch`: rows of a step."""
    return steps + (passes / batch * _PASS if batch else 0.0)


def cost(measured: Measured) -> Cost:
    """What one more unit takes, and what a stage takes whatever it does.

    Of a training the time between steps is known. Of the others all but loading grows with the units.
    """
    rest = max(measured.seconds - measured.loading, 0.0)
    units = max(measured.units, 1e-9)
    if measured.step is not None:
        fixed = max(rest - measured.step * measured.units, 0.0)
        return Cost(fixed, measured.loading, measured.step, measured.memory, measured.disk, 0.0)
    return Cost(0.0, measured.loading, rest / units, measured.memory, 0.0, measured.disk / units)


def cost_of(stage: str, costs: Mapping[str, Cost]) -> Cost | None:
    """The cost of a stage, or of one of its kind; None where neither was measured."""
    return costs.get(stage) or costs.get(STAGES[stage].like)
