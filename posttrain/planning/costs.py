"""The cost of a stage, from a probe's measurement in small. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.stages.amounts import Amounts
from posttrain.stages.registry import STAGES

_PASS = 1 / 3  # of a step: a step is a forward pass and a backward pass, which is about two


@dataclass(frozen=True)
class Measured:
    """A measured stage. `seconds`: of a core, or of the GPU; `loading`: the part of them for loading models; `step`:
    seconds of one optimizer step. `units`: completions, rows or steps. `memory`, `disk`: bytes of one process."""

    stage: str
    seconds: float
    loading: float
    units: float
    step: float | None
    memory: int
    disk: int
    metrics: Mapping[str, object]


def together(some: Sequence[Measured]) -> Measured:
    """Merges measurements of a stage that samples; of the metrics, tokens and completions are summed."""
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
    """`fixed` seconds, `unit` seconds per unit, `loading` seconds per process. Memory and disk in bytes, `disk_unit`
    per unit."""

    fixed: float
    loading: float
    unit: float
    memory: float
    disk: float
    disk_unit: float

    def seconds(self, units: float, processes: int = 1) -> float:
        return self.fixed + self.loading * processes + self.unit * units


def work(stage: str, amounts: Amounts) -> float:
    """The units of a stage: completions, rows, or optimizer steps plus forward passes as fractions of a step."""
    if STAGES[stage].trained:
        batch = amounts.rows / amounts.steps if amounts.steps else 0.0
        return steps_and_passes(amounts.steps, amounts.passes, batch)
    return amounts.completions if STAGES[stage].samples else amounts.rows


def steps_and_passes(steps: int, passes: int, batch: float) -> float:
    """Optimizer steps, plus `passes` rows of forward passes converted to steps. `batch`: rows per step."""
    return steps + (passes / batch * _PASS if batch else 0.0)


def cost(measured: Measured) -> Cost:
    """The fixed cost of a stage, and the cost per unit.

    For a training the time per step was measured. For others everything but loading is taken to grow with the units.
    """
    rest = max(measured.seconds - measured.loading, 0.0)
    units = max(measured.units, 1e-9)
    if measured.step is not None:
        fixed = max(rest - measured.step * measured.units, 0.0)
        return Cost(fixed, measured.loading, measured.step, measured.memory, measured.disk, 0.0)
    return Cost(0.0, measured.loading, rest / units, measured.memory, 0.0, measured.disk / units)


def cost_of(stage: str, costs: Mapping[str, Cost]) -> Cost | None:
    """The cost of a stage, or of the stage that it is `like`; None if neither was measured."""
    return costs.get(stage) or costs.get(STAGES[stage].like)
