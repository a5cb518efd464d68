"""Artifacts, stage calls, and the protocol between the loop and a runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Artifact:
    """The output of a stage, or a model from outside the run (then `path` is absolute)."""

    key: str
    path: Path


def present(**artifacts: Artifact | None) -> dict[str, Artifact]:
    """Inputs by role, without those that are not there."""
    return {role: artifact for role, artifact in artifacts.items() if artifact}


@dataclass(frozen=True)
class StageCall:
    """One stage of a round, as the loop submits it.

    The cache key is made of `config` (plain JSON), `seed`, the keys of `inputs` and `external_hashes` (content hashes
    of files outside the run, by name). `runtime` (paths, how to run) does not enter it. `role`: the name within the
    round, where that is not the stage's own.
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
        """The name within the round."""
        return self.role or self.stage


class Stages(Protocol):
    """The loop's interface to a runner. `Runner` runs the stages; `posttrain.planning.dry_run` only records them."""

    def begin_round(self, number: int) -> None: ...
    def submit(self, call: StageCall) -> Artifact: ...
    def metrics(self, artifact: Artifact) -> dict[str, Any]: ...
    def end_round(self, promoted: bool, policy: Artifact) -> None: ...
    def end(self) -> None: ...
    def stop(self) -> None: ...
