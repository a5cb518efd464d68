"""What a stage makes, and what the loop asks of whoever has its stages run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Artifact:
    """What a stage made, or a model that came from outside the run (then `path` is absolute)."""

    key: str
    path: Path


@dataclass(frozen=True)
class StageCall:
    """One stage of a round, as the loop asks for it.

    `config` (plain JSON), `seed`, the keys of `inputs` and `external_hashes` (of the content of outside files, by name)
    decide the result and make its key; `runtime` says where things lie and how to run. `role`: what it is in the round,
    where that is not the stage's own name.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    seed: int
    external_hashes: Mapping[str, str] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    role: str = ""

    @property
    def name(self) -> str:
        """Its name within the round."""
        return self.role or self.stage


class Stages(Protocol):
    """What the loop asks of whoever has its stages done: see `Runner`, which does all of it."""

    def begin_round(self, number: int) -> None: ...
    def submit(self, call: StageCall) -> Artifact: ...
    def metrics(self, artifact: Artifact) -> dict[str, Any]: ...
    def end_round(self, promoted: bool, policy: Artifact) -> None: ...
    def end(self) -> None: ...
    def stop(self) -> None: ...
