"""A dry run of the loop: which stages there will be, and which waits for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.execution.artifact import Artifact, StageCall
from posttrain.loop import play
from posttrain.recipe.recipe import Recipe
from posttrain.stages.amounts import PlannedStage


class DryRunner:
    """A runner that records the stages submitted to it and runs none. Every gate promotes the new policy."""

    def __init__(self) -> None:
        self.stages: list[PlannedStage] = []
        self._number = 0
        self._known: set[str] = set()
        self._waited: set[str] = set()  # keys that the loop itself has waited for

    def begin_round(self, number: int) -> None:
        self._number = number

    def submit(self, call: StageCall) -> Artifact:
        key = f"{self._number}/{call.name}"
        read = {part: artifact.key for part, artifact in call.inputs.items()}
        waits = frozenset(self._waited | (set(read.values()) & self._known))
        self.stages.append(PlannedStage(key, self._number, call.stage, call.name, call.config, read, waits))
        self._known.add(key)
        return Artifact(key, Path(key))

    def metrics(self, artifact: Artifact) -> dict[str, Any]:
        self._waited.add(artifact.key)
        return {"promoted": True, "ci95": [1.0, 1.0], "warnings": []}

    def end_round(self, promoted: bool, policy: Artifact) -> None: ...
    def end(self) -> None: ...
    def stop(self) -> None: ...


def dry_run(recipe: Recipe, n: int) -> list[PlannedStage]:
    """The stages of `n` rounds, in the order in which the loop submits them. Reads the recipe's files to hash them.

    Raises:
        InputError: model, prompts or rewards cannot be read.
    """
    runner = DryRunner()
    play(recipe, runner, n)
    return runner.stages
