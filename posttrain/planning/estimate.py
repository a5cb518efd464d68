"""The plan of a recipe: the amount of work, time, memory and disk of each stage of each round. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.evaluation.likelihood_shards import shards_on_cpu
from posttrain.planning.costs import Cost, cost_of, work
from posttrain.planning.simulate import Task, simulate
from posttrain.stages.amounts import Amounts, PlannedStage, Sets, Shares, amounts


@dataclass(frozen=True)
class Machine:
    """`cores`: what work is spread over (a GPU is one); `workers`: processes of a stage that samples; `at_once`: stages
    that run at once; `threads`: cores that one training uses; `memory`: bytes of an idle process."""

    cores: int
    workers: int
    at_once: int
    threads: int
    memory: int


def plan(
    stages: Sequence[PlannedStage],
    sets: Sets,
    shares: Shares,
    costs: Mapping[str, Cost],
    machine: Machine,
    model_bytes: int,
    prompts_seconds: float = 0.0,
) -> dict[str, Any]:
    """The plan as plain JSON. Seconds, memory and shares of rows kept are null where nothing was measured."""
    todo = amounts(stages, sets, shares)
    tasks = {planned.key: _task(planned, todo[planned.key], costs, machine, prompts_seconds) for planned in stages}
    timeline = simulate(list(tasks.values()), machine.cores, machine.at_once) if costs else None
    rounds, before = [], 0.0
    for number in sorted({planned.number for planned in stages}):
        own = [planned for planned in stages if planned.number == number]
        parts = [_stage(planned, todo[planned.key], tasks[planned.key], costs, model_bytes) for planned in own]
        spent = None
        if timeline:
            gate = max((timeline.ends[planned.key] for planned in own if not planned.spec.background), default=before)
            spent, before = gate - before, gate
        rounds.append({"round": number, "stages": parts, "seconds": spent, **_sums(parts)})
    missing = {planned.stage for planned in stages if _is_work(todo[planned.key]) and not cost_of(planned, costs)}
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


def processes(planned: PlannedStage, todo: Amounts, machine: Machine) -> int:
    """The processes of a stage: one per shard, at most `machine.workers`. Answers to a benchmark are divided for as
    many as there are; what several policies read is read by one after the other."""
    if planned.spec.unit == "tokens":
        if todo.completions:
            return machine.workers
        policies = sum(role.startswith(("policy", "reference")) for role in planned.inputs)
        shards = shards_on_cpu(todo.longest / max(policies, 1), planned.config["engine"]["shard_tokens"])
        return min(machine.workers, shards)  # a GPU has one worker
    if not planned.spec.samples or not todo.prompts:
        scores = planned.spec.unit == "rows" and planned.spec.group in ("sampling and scoring", "evaluation")
        return machine.workers if scores and todo.rows else 1
    return max(1, min(machine.workers, _shards(planned, todo)))


def _shards(planned: PlannedStage, todo: Amounts) -> int:
    """Of a stage that samples or reads: those at each further temperature are others."""
    reads = planned.spec.unit == "tokens"
    longest = todo.longest if reads else todo.completions * planned.config["answers"]["max_new_tokens"]
    shards = math.ceil(longest / planned.config["engine"]["shard_tokens"])
    return max(shards, 1 + len(planned.config.get("further", ())))


def _task(
    planned: PlannedStage, todo: Amounts, costs: Mapping[str, Cost], machine: Machine, prompts_seconds: float
) -> Task:
    many = processes(planned, todo, machine)
    found = cost_of(planned, costs)
    seconds = prompts_seconds if planned.stage == "prompts" else 0.0
    memory = 0.0
    if found and _is_work(todo):
        batches = _shards(planned, todo) if todo.completions else 0
        seconds = found.seconds(work(planned, todo), many, batches) + todo.seconds
        memory = found.memory * many
    width = machine.threads if planned.spec.trained else many
    return Task(planned.key, seconds, width, planned.waits, planned.spec.background, memory)


def _stage(
    planned: PlannedStage, todo: Amounts, task: Task, costs: Mapping[str, Cost], model_bytes: int
) -> dict[str, Any]:
    found = cost_of(planned, costs)
    disk = 0.0
    if found:
        units = todo.completions if planned.spec.unit == "tokens" else work(planned, todo)
        disk = found.disk + found.disk_unit * units
    if planned.spec.makes_model:
        disk = disk if found and planned.spec.trained else model_bytes
    return {
        "stage": planned.role,
        **{name: getattr(todo, name) for name in ("prompts", "completions", "tokens", "read", "rows", "steps")},
        "seconds": task.work / task.width if found or planned.stage == "prompts" else None,
        "memory": task.memory if found else None,
        "disk": round(disk),
    }
