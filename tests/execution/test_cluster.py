"""What goes to a cluster, and what does not. Real ones: test_slurm.py, test_ray.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.interrupted import BASE, Training
from support.planned import done, planned

from posttrain.errors import EngineError, PosttrainError, StageCrashedError
from posttrain.execution import resources, task
from posttrain.execution.cluster import OnCluster
from posttrain.execution.launcher import Ended, InProcess
from posttrain.execution.scheduler import Planned
from posttrain.storage.store import Store


class Here:
    """A cluster whose tasks run in this process as they are submitted. `fails`: errors of the first ones."""

    looks_every = 0.01

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


def test_each_stage_that_is_refused_is_told(tmp_path: Path) -> None:
    class Refuses(Here):
        def submit(self, folder: Path, stage: Mapping[str, Any], shards: int) -> None:
            raise StageCrashedError(f"no room for {folder.name}")

    launcher, run = OnCluster(Refuses()), Store(tmp_path)
    with run.session():
        for name in ("one", "two"):
            made = {**stage("hardware", model=str(BASE)).stage, "key": f"hardware-{name}"}
            launcher.start(run.begin(made["key"], made), 1)
        ends = [launcher.wait(), launcher.wait()]
    assert [str(one.error) for one in ends if isinstance(one, Ended)] == [
        "no room for hardware-one",
        "no room for hardware-two",
    ]


def test_the_memory_of_this_machine_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[float]()
    monkeypatch.setattr(resources, "check", lambda need, root, what: asked.append(need.memory))
    for launcher in (OnCluster(Here()), InProcess()):
        done(tmp_path / str(launcher.here), launcher, planned(Training("sft", tmp_path / f"of-{launcher.here}")))
    assert asked[0] == 0 < asked[1]


def test_a_folder_that_is_not_there_is_told_as_not_shared(tmp_path: Path) -> None:
    task.hello(tmp_path / "elsewhere", 0)
    (tmp_path / task.NONCE).write_text("one")
    with pytest.raises(EngineError, match=r"\[cluster-folder\]"):
        task.compare(tmp_path, 1)
