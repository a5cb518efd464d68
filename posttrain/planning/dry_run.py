"""The loop walked through without doing anything: which stages there will be, and which waits for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.execution.artifact import Artifact, StageCall
from posttrain.loop import play
from posttrain.recipe.recipe import Recipe
from posttrain.stages.amounts import Step


class Rehearsal:
    """Notes each stage that the loop asks for. Every gate lets the new policy through."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._number = 0
        self._known: set[str] = set()
        self._waited: set[str] = set()  # what the loop itself has waited for

    def begin_round(self, number: int) -> None:
        self._number = number

    def submit(self, call: StageCall) -> Artifact:
        key = f"{self._number}/{call.name}"
        read = {part: artifact.key for part, artifact in call.inputs.items()}
        waits = frozenset(self._waited | (set(read.values()) & self._known))
        self.steps.append(Step(key, self._number, call.stage, call.name, call.config, read, waits))
        self._known.add(key)
        return Artifact(key, Path(key))

    def metrics(self, artifact: Artifact) -> dict[str, Any]:
        self._waited.add(artifact.key)
        return {"promoted": True, "ci95": [1.0, 1.0]}

    def end_round(self, promoted: bool, policy: Artifact) -> None: ...
    def end(self) -> None: ...
    def stop(self) -> None: ...


def rehearse(recipe: Recipe, n: int) -> list[Step]:
    """The stages of `n` rounds, in the order in which the loop plans them. Reads the recipe's files, for their hashes.

    Raises:
        InputError: model, prompts or rewards cannot be read.
    """
    rehearsal = Rehearsal()
    play(recipe, rehearsal, n)
    return rehearsal.steps
