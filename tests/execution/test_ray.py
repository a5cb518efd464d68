"""Stages on a real Ray of two nodes, which are this machine: see support.ray."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ray as support
from support.clusters import LONG, at_step, made, meanwhile, round_of, trained
from support.interrupted import Training

from posttrain.config.cluster import Ray as Settings
from posttrain.errors import EngineError
from posttrain.execution.ray import Ray
from posttrain.execution.ray_files import Machines
from posttrain.planning.scripts import scripts
from posttrain.storage.files import file_hash

pytest.importorskip("ray", reason="no Ray: pip install 'posttrain[ray]'")
CLUSTER = "compute.cluster={kind: ray}"
SETTINGS = Settings(kind="ray")


@pytest.fixture
def cluster() -> Iterator[Any]:
    with support.running() as made:
        yield made


@pytest.mark.slow
def test_a_round_in_which_a_node_is_lost_is_that_of_this_machine_to_the_bit(tmp_path: Path, cluster: Any) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert subprocess.run(round_of(here), capture_output=True, timeout=600, check=False).returncode == 0
    lost = list[str]()

    def sampling() -> list[str]:
        return [str(one) for one in there.glob("work/*/scratch/**/shard-*.parquet")]

    def lose() -> None:
        lost.extend(sampling())
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    words = round_of(there, CLUSTER)
    ended = meanwhile(
        lambda: subprocess.run(words, capture_output=True, text=True, timeout=600, check=False),
        lambda: bool(sampling()),
        lose,
    )
    assert ended.returncode == 0, ended.stderr
    assert lost and made(there) == made(here)


@pytest.mark.slow
def test_a_training_whose_node_is_lost_resumes_on_another(tmp_path: Path) -> None:
    training = Training("sft", tmp_path, **LONG)
    with support.running(nodes=1) as cluster:
        (first,) = cluster.worker_nodes

        def lose() -> None:
            cluster.add_node(num_cpus=1)
            cluster.remove_node(first, allow_graceful=False)

        root = tmp_path / "run"
        run, told = meanwhile(lambda: trained(root, training, Ray(SETTINGS, None)), at_step(root, 30), lose)
    assert not told, "Ray ran it again"
    assert run.manifest("sft-0123")["metrics"]["resumed_at"] >= 20
    training.go()
    assert file_hash(run.path("sft-0123") / "model.safetensors") == training.bits()


@pytest.mark.long
def test_a_training_on_two_nodes_is_that_of_two_processes_here_and_survives_one(tmp_path: Path, cluster: Any) -> None:
    training = Training("sft", tmp_path, **{**LONG, "num_train_epochs": 50})
    first = next(iter(cluster.worker_nodes))

    def lose() -> None:
        cluster.add_node(num_cpus=1)
        cluster.remove_node(first, allow_graceful=False)

    root = tmp_path / "run"
    run, told = meanwhile(lambda: trained(root, training, Ray(SETTINGS, 2)), at_step(root, 30), lose)
    metrics = run.manifest("sft-0123")["metrics"]
    assert not told and metrics["processes"] == 2 and metrics["resumed_at"] >= 20
    training.go(runtime={"processes": 2})
    assert file_hash(run.path("sft-0123") / "model.safetensors") == training.bits()


def test_what_the_cluster_cannot_do_is_refused_before_work_begins(tmp_path: Path) -> None:
    training = Training("sft", tmp_path)
    with pytest.raises(EngineError, match=r"no Ray cluster at `auto`.*`ray start --head`.*\[cluster-absent\]"):
        trained(tmp_path / "run", training, Ray(SETTINGS, None))
    with support.running(nodes=1):
        with pytest.raises(EngineError, match=r"needs 3 CPUs, .*and the nodes have .*1 CPUs.*\[cluster-room\]"):
            trained(tmp_path / "run", training, Ray(SETTINGS, 3))
        large = SETTINGS.model_copy(update={"memory_gib": 5000})
        with pytest.raises(EngineError, match=r"5000\.0 GiB, and the nodes have.*\[cluster-room\]"):
            trained(tmp_path / "run", training, Ray(large, None))


def test_files_for_kubernetes_and_rented_machines_hold_the_command() -> None:
    given, machines = ["compute.cluster={kind: ray, cpus: 4}"], Machines(nodes=2, devices=8, device="h100")
    job = yaml.safe_load(scripts("quickstart", given, 6, "kuberay", machines))["spec"]
    words = shlex.split(job["entrypoint"])
    assert words[:5] == ["posttrain", "round", "quickstart", "--n", "6"] and words[-1] == given[0]
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 2
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "32", "memory": "192Gi", "nvidia.com/gpu": "8"}
    rented = yaml.safe_load(scripts("quickstart", given, 6, "skypilot", machines))
    assert rented["num_nodes"] == 2 and rented["resources"]["accelerators"] == "H100:8"
    assert "posttrain round quickstart --n 6" in rented["run"]
    assert subprocess.run(["bash", "-n", "-c", rented["run"]], check=False).returncode == 0
    none = yaml.safe_load(scripts("quickstart", given, 1, "skypilot", Machines()))
    assert "accelerators" not in none["resources"]


def test_nothing_of_ray_is_imported_without_it() -> None:
    said = (
        "import sys, posttrain.cli, posttrain.execution.cluster, posttrain.execution.ray; print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
