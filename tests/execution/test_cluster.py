"""What goes to a cluster, and what does not. Real ones: test_slurm.py, test_ray.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.interrupted import BASE, Training
from support.planned import done, planned

from posttrain.errors import PosttrainError, StageCrashedError
from posttrain.execution import task
from posttrain.execution.cluster import OnCluster
from posttrain.execution.scheduler import Planned
from posttrain.storage.store import Store


class Here:
    """A cluster whose tasks run in this process as they are submitted. `fails`: errors of the first ones."""

    def __init__(self, *fails: PosttrainError) -> None:
        self.fails, self.submitted = list(fails), list[tuple[str, int]]()

    def check(self, folder: Path) -> None:
        task.hello(folder, 0)

    def submit(self, folder: Path, stage: Mapping[str, Any], shards: int) -> None:
        self.submitted.append((stage["stage"], shards))
        if not self.fails:
            task.train(folder, 1)

    def ended(self, folder: Path) -> bool:
        if self.fails:
            raise self.fails.pop(0)
        return True

    def cancel(self, folder: Path) -> None: ...


def stage(name: str, **inputs: str) -> Planned:
    made = {"stage": name, "key": f"{name}-0123", "input_keys": dict.fromkeys(inputs, "outside-0"), "inputs": inputs}
    made |= {"outside": {}, "config": {}, "runtime": {}, "seed": 0}
    return Planned(f"{name}-0123", 1, made, frozenset(), False, name)


def test_types_and_attention_are_measured_where_trainings_run(tmp_path: Path) -> None:
    cluster = Here()
    assert not done(tmp_path, OnCluster(cluster), stage("hardware", model=str(BASE)))
    assert cluster.submitted == [("hardware", 0)]
    assert Store(tmp_path).manifest("hardware-0123")["metrics"]["engine"]["name"] in ("float32", "bfloat16")


def test_what_a_cluster_lost_is_submitted_again(tmp_path: Path) -> None:
    cluster = Here(StageCrashedError("its node is gone"))
    told = done(tmp_path / "run", OnCluster(cluster), planned(Training("sft", tmp_path)))
    assert len(told) == 1 and told[0].endswith("its node is gone") and cluster.submitted == [("sft", 0)] * 2
    assert Store(tmp_path / "run").manifest("sft-0123")["attempts"]
