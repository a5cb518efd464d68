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
    see `work`; `unit`: seconds of one more, None where the stage's seconds say it; `batch`: seconds of a batch of
    completions, however few. `memory`, `disk`: bytes of one process."""

    stage: str
    seconds: float
    loading: float
    units: float
    unit: float | None
    batch: float
    memory: int
    disk: int
    metrics: Mapping[str, object]


def row_share(active: float, steps: Mapping[int, float]) -> float:
    """The share of a step's time that its rows take, where `active` run on average. `steps`: of two numbers of rows,
    the seconds of a step, which are a + b n for n rows."""
    (few, short), (many, long) = sorted(steps.items())
    row = max((long - short) / (many - few), 0.0)
    step = max(short - few * row, 0.0)
    return row * active / (step + row * active) if step or row else 1.0


@dataclass(frozen=True)
class Cost:
    """`fixed` seconds, `unit` seconds per unit, `loading` seconds per process, `batch` seconds per batch of
    completions. Memory and disk in bytes, `disk_unit` per unit."""

    fixed: float
    loading: float
    unit: float
    memory: float
    disk: float
    disk_unit: float
    batch: float = 0.0

    def seconds(self, units: float, processes: int = 1, batches: int = 1) -> float:
        return self.fixed + self.loading * processes + self.unit * units + self.batch * batches


def work(planned: PlannedStage, amounts: Amounts) -> float:
    """The units of a stage: completions, rows that are scored or filtered, or rows that optimizer steps read, with
    those of other forward passes as parts of them. A token that is read counts as a new one: it costs no more."""
    if planned.spec.trained:
        section = planned.config[planned.stage]
        if section.get("max_steps", -1) > 0:
            read = amounts.steps * min(section["batch"], amounts.rows)
        else:  # the last batch of an epoch has fewer rows
            read = amounts.rows * section["num_train_epochs"]
        return read + amounts.passes * PASS
    if planned.spec.unit == "tokens":
        return amounts.as_answers
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
    return Cost(0.0, measured.loading, unit, measured.memory, 0.0, measured.disk / units, measured.batch)


def cost_of(planned: PlannedStage, costs: Mapping[str, Cost]) -> Cost | None:
    """The cost of a stage, or of the stage that it is `like`; None if neither was measured. Where a reward model scores
    answers, a row costs what it does in `scores`: the probe evaluates without one, and scores each answer once."""
    spec = planned.spec
    if "reward_model" in planned.inputs and spec.unit == "rows" and "scores" in costs:
        return costs["scores"]
    return costs.get(planned.stage) or costs.get(spec.like)
