"""`compute.cluster`: the scheduler that runs trainings, and the shards of stages that sample and score."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.config.section import MOST, Few, Section


class Slurm(Section):
    """A Slurm cluster. The run's folder, the models and the package are on a file system that all nodes share."""

    kind: Literal["slurm"]
    """The scheduler."""
    partition: str | None = None
    """As of sbatch, like the next ones; null: the cluster's default."""
    account: str | None = None
    """Whose allocation the jobs are charged to."""
    time: str | None = None
    """Limit of a job, such as 04:00:00. Shortly before it a training saves a checkpoint, and the job is requeued."""
    gres: str | None = None
    """Of each job, such as gpu:8."""
    cpus: Few | None = None
    """Cores of each task."""
    memory: str | None = None
    """Of each node, such as 64G."""
    nodes: Few = 1
    """Nodes of a training, which share its processes evenly."""
    tasks: Few = 8
    """Jobs that sample or score for one stage at the same time, at most."""
    options: list[str] = Field(default=[])
    """Further options, such as --qos=high."""
    warning: int = Field(default=90, ge=1, le=86_400)
    """Seconds before the time limit at which Slurm tells a job that it is near."""
    template: str | None = None
    """A batch script of your own in place of ours; `posttrain check --script slurm` prints ours."""


class Ray(Section):
    """A Ray cluster. The run's folder, the models and the package are on a file system that all nodes share."""

    kind: Literal["ray"]
    """The scheduler."""
    address: str = "auto"
    """Of the cluster; auto: the one that this machine belongs to, or RAY_ADDRESS."""
    cpus: Few = 1
    """Cores of a task that samples or scores, and of each process of a training; each has a GPU where there are any."""
    memory_gib: float | None = Field(default=None, gt=0, le=MOST)
    """Memory of each of them; null: not counted."""
