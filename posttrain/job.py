"""The arguments of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from posttrain.config.keys import Keyed, join
from posttrain.storage.part import Part

S = TypeVar("S", bound=Keyed)


def no_progress(done: int, total: int, unit: str) -> None:
    """Ignores progress."""


@dataclass(frozen=True)
class Job:
    """The arguments of a stage.

    `config` (plain JSON) decides the result; `runtime` (paths outside the run, how to run) does not. `inputs` are
    artifact folders; the payload goes to `out`; `scratch` survives a kill. `workers`: most processes or threads.
    `part`: the shards that are made here, None: all.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    seed: int
    runtime: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    part: Part | None = None
    progress: Callable[[int, int, str], None] = field(default=no_progress)

    def counter(self, total: int, unit: str) -> Callable[[int], None]:
        """A function that is given how much more is done, and reports how much is done in all."""
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.progress(done, total, unit)

        return count

    def numbered(self, name: str) -> list[str]:
        """The roles `name`_1, `name`_2, … among the inputs, in the order of their numbers."""
        roles = [role for role in self.inputs if role.startswith(f"{name}_")]
        return sorted(roles, key=lambda role: int(role.rpartition("_")[2]))

    def section(self, name: str, kind: type[S]) -> S:
        """A section of the recipe, restored from its parts in `config` and `runtime`."""
        return kind.restored(self.config[name], self.runtime.get(name))

    def sections(self, name: str, kind: type[S]) -> list[S]:
        """A list of such sections."""
        return [kind.model_validate(one) for one in join(self.config[name], self.runtime.get(name))]
