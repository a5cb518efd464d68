"""What a stage is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from posttrain.config.keys import Keyed, join

S = TypeVar("S", bound=Keyed)


def no_progress(done: int, total: int, unit: str) -> None:
    """The progress of a stage that nobody watches."""


@dataclass(frozen=True)
class Job:
    """What a stage is given.

    `config` is plain JSON and decides the result; `runtime` says where outside files lie and how to run, and does not
    decide it. `inputs` are whole folders; the payload goes to `out`; what is in `scratch` survives a kill. `workers`
    is how many processes or threads it may use.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    seed: int
    runtime: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    progress: Callable[[int, int, str], None] = field(default=no_progress)

    def section(self, name: str, kind: type[S]) -> S:
        """A section of the recipe, whole again from what of it is in `config` and in `runtime`."""
        return kind.restored(self.config[name], self.runtime.get(name))

    def sections(self, name: str, kind: type[S]) -> list[S]:
        """A list of such sections."""
        return [kind.model_validate(one) for one in join(self.config[name], self.runtime.get(name))]
