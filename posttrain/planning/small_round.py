"""One small round of a recipe, run to be measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain.config.trained import BATCH
from posttrain.config.training import TRAINED
from posttrain.errors import StageError
from posttrain.execution.artifact import Artifact, StageCall
from posttrain.execution.launcher import Launcher
from posttrain.execution.progress import Silent
from posttrain.execution.runner import Runner
from posttrain.loop import play
from posttrain.pipeline.stage_inputs import StageInputs
from posttrain.planning import known_answers, probe
from posttrain.planning.costs import Cost, cost
from posttrain.recipe.recipe import Recipe
from posttrain.stages.amounts import Shares
from posttrain.stages.registry import STAGES
from posttrain.storage.store import Store
from posttrain.system import SMALL_MODEL, cores, gpu


@dataclass(frozen=True)
class Found:
    """What a small round showed. `costs`: of each stage that was reached; `memory`: bytes of a process before any work;
    `ended`: why it ended early."""

    costs: dict[str, Cost]
    shares: Shares
    memory: int
    ended: StageError | None


def run(small: Recipe, parameters: int, prompts: Artifact, launcher: Launcher, store: Store) -> Found:
    """Runs the round and takes its figures. `small`: see `miniature`; `parameters`: of its model.

    Stages have one process and one thread each, whose CPU time other load does not change much, and two run at once;
    the answers of a large model are sampled by two processes.
    """
    side_by_side = 1 if gpu() else min(cores(), 2)
    small = small.model_copy(update={"compute": small.compute.model_copy(update={"stages_at_once": side_by_side})})
    ended: StageError | None = None
    try:
        first = Runner(store, launcher, Silent(), side_by_side, small)
        stages = StageInputs(small, first)
        stages.begin(1)
        stages.settle(prompts)
        answers = stages.samples(prompts, stages.base, None)
        first.metrics(answers)
        sections = [section for name in TRAINED if (section := getattr(small, name))]
        rows = [math.prod(section.trl[key] for key in ("max_steps", *BATCH)) for section in sections]
        known_answers.keep_pool(store.root, answers.path, max(rows, default=0))
        stand_in = Artifact(known_answers.STAND_IN, store.root / known_answers.STAND_IN)
        rows_made = stand_in if parameters > SMALL_MODEL else None
        play(small, _Measured(store, launcher, Silent(), 1, small, stages.base, rows_made), 1)
    except _AllMeasured:
        pass
    except StageError as error:
        ended = error
    measured = probe.read_measured(store.root)
    costs = {
        name: cost(found)
        for name, found in measured.items()
        if name not in ("hardware", "prompts", "heldout") and not STAGES[name].check_only
    }
    return Found(costs, probe.shares(measured), probe.resident(store.root), ended)


class _AllMeasured(Exception):
    """Every stage that follows was measured before."""


class _Measured(Runner):
    """Leaves out the trial, which was run, and stops before the new policy is evaluated: that costs what the starting
    model's evaluation did. A training reads the rows `made` from the answers, if any, and so need not wait for others;
    `pairs` waits for `scores`, whose scores it reads.
    """

    def __init__(
        self,
        run: Store,
        launcher: Launcher,
        watcher: Silent,
        workers: int,
        recipe: Recipe,
        base: Artifact,
        made: Artifact | None,
    ) -> None:
        super().__init__(run, launcher, watcher, workers, recipe)
        self._base, self._made_rows = base, made
        self._scores: Artifact | None = None

    def metrics(self, artifact: Artifact) -> dict[str, Any]:
        return {} if artifact.key == "trial" else super().metrics(artifact)

    def submit(self, call: StageCall) -> Artifact:
        if call.stage == "trial":
            return Artifact("trial", self.store.path("trial"))
        if call.stage == "scores":
            self._scores = super().submit(call)
            return self._scores
        if call.stage == "pairs" and self._scores:
            call = replace(call, inputs={**call.inputs, known_answers.SCORED: self._scores})
        if self._made_rows and STAGES[call.stage].trained:
            call = replace(call, inputs=self._at_once(call.inputs))
        if call.name == "answers_dev" and self.rounds[-1]["round"]:
            self.end()
            raise _AllMeasured
        return super().submit(call)

    def _at_once(self, inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """Inputs of a training that are there already."""
        assert self._made_rows
        there = {"model": self._base, **dict.fromkeys(known_answers.MADE, self._made_rows)}
        return {role: there.get(role, artifact) for role, artifact in inputs.items()}
