"""What runs a recipe on other machines, in text: a cluster's scripts, and files that start a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.errors import InputError
from posttrain.execution import ray_files
from posttrain.execution.ray_files import Machines
from posttrain.execution.slurm import Slurm
from posttrain.recipe.load import load


def scripts(name: str, overrides: Sequence[str], n: int, kind: str, machines: Machines) -> str:
    """What runs a recipe on other machines, to be looked at. `slurm`: the batch scripts of a training and of an array
    of jobs; `kuberay`, `skypilot`: a file that starts a Ray cluster and the command in it.

    Raises:
        InputError: the recipe cannot be read, or its cluster is of another kind.
    """
    recipe = load(name, overrides)
    compute, wanted = recipe.compute, "slurm" if kind == "slurm" else "ray"
    if compute.cluster is None or compute.cluster.kind != wanted:
        raise InputError(
            f"{kind} is for recipes with `compute.cluster: {{kind: {wanted}}}`",
            hint=f"add it to the recipe, or --set 'compute.cluster={{kind: {wanted}}}'",
            rule="command-no-cluster",
        )
    if compute.cluster.kind == "ray":
        return ray_files.filled(kind, name, n, overrides, compute.cluster, machines)
    slurm, folder = Slurm(compute.cluster, compute.processes), Path("RUN/work/STAGE-KEY")
    return "\n".join(slurm.script(folder, role, "NAME", tasks) for role, tasks in (("training", 0), ("shards", 4)))
