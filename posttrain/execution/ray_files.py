"""Files that start a Ray cluster with the command in it: KubeRay's on Kubernetes, SkyPilot's on rented machines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.cluster import Ray
from posttrain.execution.template import Template

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Machines:
    """So many nodes with so many GPUs each, of a kind such as h100; None: no GPUs."""

    nodes: int = 1
    devices: int = 1
    device: str | None = None


def filled(kind: str, recipe: str, n: int, overrides: Sequence[str], settings: Ray, machines: Machines) -> str:
    """The file of that kind (`kuberay`, `skypilot`) for `n` rounds of a recipe."""
    words = ["posttrain", "round", recipe, "--n", str(n), "--run", f"/shared/runs/{Path(recipe).stem}"]
    words += [word for one in overrides for word in ("--set", one)]
    gpus = machines.devices if machines.device else 0
    places = max(1, gpus)
    return Template((HERE / f"{kind}.yaml").read_text("utf-8")).substitute(
        command=shlex.join(words),
        quoted=json.dumps(shlex.join(words)),
        nodes=machines.nodes,
        cpus=settings.cpus * places,
        memory=round(1.5 * (settings.memory_gib or 16) * places),  # Ray keeps some third for its object store
        gpus=f', nvidia.com/gpu: "{gpus}"' if gpus else "",
        accelerators=f"accelerators: {machines.device.upper()}:{gpus}, " if machines.device else "",
    )
