"""The plan of a recipe: what each stage of each round does and takes, from amounts, costs and the timeline. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.planning.costs import Cost, cost_of, work
from posttrain.planning.simulate import Task, simulate
from posttrain.stages.amounts import Amounts, Sets, Shares, Step, amounts


@dataclass(frozen=True)
class Machine:
    """`cores`: what work is spread over (a GPU is one); `workers`: processes of a stage that samples; `at_once`: stages
    side by side; `threads`: cores that one training uses; `memory`: bytes of a process before it does anything."""

    cores: int
    workers: int
    at_once: int
    threads: int
    memory: int


def plan(
    steps: Sequence[Step],
    sets: Sets,
    shares: Shares,
    costs: Mapping[str, Cost],
    machine: Machine,
    model_bytes: int,
    prompts_seconds: float = 0.0,
) -> dict[str, Any]:
    """The plan as plain JSON. Seconds, memory and what rows are left over are null where nothing was measured."""
    todo = amounts(steps, sets, shares)
    tasks = {step.key: _task(step, todo[step.key], costs, machine, prompts_seconds) for step in steps}
    timeline = simulate(list(tasks.values()), machine.cores, machine.at_once) if costs else None
    rounds, before = [], 0.0
    for number in sorted({step.number for step in steps}):
        own = [step for step in steps if step.number == number]
        stages = [_stage(step, todo[step.key], tasks[step.key], costs, model_bytes) for step in own]
        gate = (
            max((timeline.ends[step.key] for step in own if not step.spec.background), default=before)
            if timeline
            else before
        )
        spent = gate - before if timeline else None
        rounds.append({"round": number, "stages": stages, "seconds": spent, **_sums(stages)})
        before = gate
    missing = {step.stage for step in steps if _is_work(todo[step.key]) and not cost_of(step.stage, costs)}
    return {
        "rounds": rounds,
        **_sums(rounds),
        "seconds": timeline.seconds if timeline else None,
        "core_seconds": sum(task.work for task in tasks.values()) if timeline else None,
        "memory": machine.memory + timeline.memory if timeline else None,
        "not_measured": sorted(missing) if timeline else None,
        "sets": asdict(sets),
        "shares": asdict(shares) if timeline else None,
    }


def _sums(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: sum(part[name] for part in parts) for name in ("completions", "tokens", "steps", "disk")}


def _is_work(amounts: Amounts) -> bool:
    return bool(amounts.completions or amounts.rows or amounts.steps)


def processes(step: Step, todo: Amounts, machine: Machine) -> int:
    """How many processes a stage spreads over: a shard each, as many as there are workers."""
    if not step.spec.samples or not todo.prompts:
        scores = step.spec.unit == "rows" and step.spec.group in ("sampling and scoring", "evaluation")
        return machine.workers if scores and todo.rows else 1
    longest = todo.completions * step.config["answers"]["max_new_tokens"]
    shards = math.ceil(longest / step.config["engine"]["shard_tokens"])
    return max(1, min(machine.workers, shards))


def _task(step: Step, todo: Amounts, costs: Mapping[str, Cost], machine: Machine, prompts_seconds: float) -> Task:
    many = processes(step, todo, machine)
    found = cost_of(step.stage, costs)
    seconds = prompts_seconds if step.stage == "prompts" else 0.0
    memory = 0.0
    if found and _is_work(todo):
        seconds = found.seconds(work(step.stage, todo), many)
        memory = found.memory * many
    width = machine.threads if step.spec.trained else many
    return Task(step.key, seconds, width, step.waits, step.spec.background, memory)


def _stage(step: Step, todo: Amounts, task: Task, costs: Mapping[str, Cost], model_bytes: int) -> dict[str, Any]:
    found = cost_of(step.stage, costs)
    disk = found.disk + found.disk_unit * work(step.stage, todo) if found else 0.0
    if step.spec.makes_model:
        disk = disk if found and step.spec.trained else model_bytes
    return {
        "stage": step.role,
        **{name: getattr(todo, name) for name in ("prompts", "completions", "tokens", "rows", "steps")},
        "seconds": task.work / task.width if found or step.stage == "prompts" else None,
        "memory": task.memory if found else None,
        "disk": round(disk),
    }
