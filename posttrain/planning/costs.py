"""The cost of a stage, from a probe's measurement in small. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.stages.amounts import Amounts, PlannedStage
from posttrain.stages.registry import STAGES

PASS = 1 / 3  # of a step: a step is a forward pass and a backward pass, which is about two


@dataclass(frozen=True)
class Measured:
    """A measured stage. `seconds`: of a core, or of the GPU; `loading`: the part of them for loading models; `units`:
    see `work`; `unit`: seconds of one more, None where the stage's seconds say it. `memory`, `disk`: bytes of one
    process."""

    stage: str
    seconds: float
    loading: float
    units: float
    unit: float | None
    memory: int
    disk: int
    metrics: Mapping[str, object]


@dataclass(frozen=True)
class Narrow:
    """Sampling of few completions. `tokens`: of them and of their prompts; `steps`: of all batches; `longest`: tokens
    of the longest completion."""

    seconds: float
    completions: int
    tokens: int
    steps: int
    longest: int


def at_width(narrow: Narrow, wide: int, wide_step: float, width: int) -> float:
    """Seconds of a completion where `width` are sampled in as many steps as the longest answer has tokens.

    A step of n rows takes a + b n seconds. `narrow` says what steps of few rows took, `wide_step` what one of `wide`
    rows did: so a and b are known.
    """
    apart = narrow.tokens - narrow.steps * wide
    each = (narrow.seconds - narrow.steps * wide_step) / apart if apart else 0.0
    each = min(max(each, 0.0), wide_step / wide)
    return each * narrow.tokens / narrow.completions + (wide_step - each * wide) * narrow.longest / width


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


def work(planned: PlannedStage, amounts: Amounts) -> float:
    """The units of a stage: completions, rows that are scored or filtered, or rows that optimizer steps read, with
    those of other forward passes as parts of them."""
    if planned.spec.trained:
        return amounts.steps * planned.config[planned.stage]["batch"] + amounts.passes * PASS
    return amounts.completions if planned.spec.samples else amounts.rows


def cost(measured: Measured) -> Cost:
    """The fixed cost of a stage, and the cost per unit.

    For a training the time per row was measured. For others everything but loading is taken to grow with the units.
    """
    rest = max(measured.seconds - measured.loading, 0.0)
    units = max(measured.units, 1e-9)
    if STAGES[measured.stage].trained:
        unit = measured.unit or 0.0
        fixed = max(rest - unit * measured.units, 0.0)
        return Cost(fixed, measured.loading, unit, measured.memory, measured.disk, 0.0)
    unit = rest / units if measured.unit is None else measured.unit
    return Cost(0.0, measured.loading, unit, measured.memory, 0.0, measured.disk / units)


def cost_of(planned: PlannedStage, costs: Mapping[str, Cost]) -> Cost | None:
    """The cost of a stage, or of the stage that it is `like`; None if neither was measured. Where a reward model scores
    answers that the probe's own evaluation had none for, a row costs what it does in `scores`."""
    spec = planned.spec
    if "reward_model" in planned.inputs and spec.group == "evaluation" and "scores" in costs:
        return costs["scores"]
    return costs.get(planned.stage) or costs.get(spec.like)
