"""Stages on a real Slurm of two nodes, which are this machine: see support.slurm."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import slurm
from support.clusters import LONG, at_step, made, round_of, trained, when
from support.interrupted import Training

from posttrain.config.cluster import Slurm as Settings
from posttrain.errors import EngineError, InputError, RecipeError
from posttrain.execution import task
from posttrain.execution.ray_files import Machines
from posttrain.execution.slurm import Slurm
from posttrain.planning import scripts as made_scripts
from posttrain.recipe.load import load
from posttrain.storage.files import file_hash

CLUSTER = "compute.cluster={kind: slurm, tasks: 2}"
real = pytest.mark.skipif(not slurm.installed(), reason="no Slurm: apt-get install slurm-wlm munge, as root")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm.running(tmp_path_factory.mktemp("slurm") / "daemons"):
        yield


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    with slurm.at_most(900) if slurm.installed() else contextlib.nullcontext():
        yield


def jobs() -> list[str]:
    """Ids of the jobs and tasks of arrays that run."""
    said = subprocess.run(["squeue", "-h", "-r", "-t", "R", "-o", "%A %i"], capture_output=True, text=True, check=True)
    return [line.split()[1] for line in said.stdout.splitlines()]


SETTINGS = Settings(kind="slurm", tasks=2)


@real
@pytest.mark.long
def test_a_round_is_that_of_this_machine_to_the_bit(tmp_path: Path, cluster: None) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for run, changes in ((here, []), (there, [CLUSTER])):
        ended = subprocess.run(round_of(run, *changes), capture_output=True, text=True, timeout=600, check=False)
        assert ended.returncode == 0, ended.stderr
    assert not list((there / "work").iterdir())
    assert made(there) == made(here)


@real
@pytest.mark.long
def test_a_training_on_two_nodes_is_that_of_two_processes_here(tmp_path: Path, cluster: None) -> None:
    training = Training("sft", tmp_path)
    training.go(runtime={"processes": 2})
    run, told = trained(tmp_path / "run", training, Slurm(SETTINGS.model_copy(update={"nodes": 2}), 2))
    assert file_hash(run.path("sft-0123") / "model.safetensors") == training.bits()
    assert run.manifest("sft-0123")["metrics"]["processes"] == 2 and not told


@real
@pytest.mark.slow
def test_a_training_whose_job_is_cancelled_is_retried_and_resumes(tmp_path: Path, cluster: None) -> None:
    training = Training("sft", tmp_path, **LONG)
    cancels = when(
        at_step(tmp_path / "run", 30), lambda: [subprocess.run(["scancel", one], check=True) for one in jobs()]
    )
    run, told = trained(tmp_path / "run", training, Slurm(SETTINGS, None))
    cancels.join()
    assert len(told) == 1 and "ended before its work was done" in told[0]
    assert run.manifest("sft-0123")["metrics"]["resumed_at"] >= 20


@real
@pytest.mark.long
def test_a_job_whose_time_is_nearly_up_saves_a_checkpoint_and_goes_back_into_the_queue(
    tmp_path: Path, cluster: None
) -> None:
    """Slurm's warning, sent by hand: a limit is a minute at least."""
    training = Training("sft", tmp_path, **{**LONG, "save_steps": 10_000})

    def warn() -> None:
        for one in jobs():
            subprocess.run(["scancel", "--batch", "--signal=USR1", one], check=True)

    warned = when(at_step(tmp_path / "run", 30), warn)
    run, told = trained(tmp_path / "run", training, Slurm(SETTINGS, None))
    warned.join()
    assert not told, "the same job went on"
    assert run.manifest("sft-0123")["metrics"]["resumed_at"] >= 30
    training.go()
    assert file_hash(run.path("sft-0123") / "model.safetensors") == training.bits()


@real
@pytest.mark.long
def test_a_command_that_was_killed_picks_its_jobs_up_and_a_cancelled_task_is_made_again(
    tmp_path: Path, cluster: None
) -> None:
    run = tmp_path / "run"
    first = subprocess.Popen(round_of(run, CLUSTER), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def records() -> list[Path]:
        """Of arrays."""
        return [one for one in run.glob("work/*/scratch/slurm.json") if json.loads(one.read_text())["tasks"] == 2]

    when(lambda: bool(records() and len(jobs()) == 2), first.kill).join()
    first.wait()
    record = records()[0]
    submitted = json.loads(record.read_text())
    for one in jobs()[:1]:
        subprocess.run(["scancel", one], check=True)
    second = subprocess.Popen(round_of(run, CLUSTER), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    waited_for = set[str]()
    while second.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            waited_for.add(json.loads(record.read_text())["submission"])
        time.sleep(0.05)
    assert second.returncode == 0, second.stderr
    assert submitted["submission"] in waited_for
    assert len(list((run / "artifacts").iterdir())) == 6 + 16


def scripts(kind: str, *changes: str) -> str:
    return made_scripts.scripts("quickstart", changes, 1, kind, Machines(nodes=2, devices=8, device="h100"))


def test_the_scripts_can_be_looked_at_and_replaced(tmp_path: Path) -> None:
    given = ["compute.cluster={kind: slurm, partition: gpu, gres: 'gpu:8', nodes: 2}", "compute.processes=16"]
    training, shards = scripts("slurm", *given).split("#!/bin/bash\n")[1:]
    assert "#SBATCH --partition=gpu" in training and "#SBATCH --nodes=2" in training
    assert "--nnodes=2 --nproc-per-node=8" in training and "--array" not in training
    assert "#SBATCH --array=0-3" in shards and "--part $SLURM_ARRAY_TASK_ID/4" in shards
    own = tmp_path / "own.sh"
    own.write_text("#!/bin/sh\n%{options}\nmodule load python\n%{command}\n")
    said = scripts("slurm", f"compute.cluster={{kind: slurm, template: {own}}}")
    assert said.count("module load python\n") == 2 and "POSTTRAIN_SOON" not in said
    with pytest.raises(InputError, match=r"compute\.cluster: \{kind: slurm\}.*\[command-no-cluster\]"):
        scripts("slurm")


def test_processes_are_shared_evenly_by_the_nodes() -> None:
    with pytest.raises(RecipeError, match=r"3 processes cannot be shared evenly by 2 nodes(.|\n)*\[recipe-nodes\]"):
        load("quickstart", ["compute.cluster={kind: slurm, nodes: 2}", "compute.processes=3"])


def test_without_slurm_it_says_where_to_run_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"`sbatch` is not installed here.*\[cluster-absent\]"):
        trained(tmp_path / "run", Training("sft", tmp_path), Slurm(SETTINGS, None))


@real
@pytest.mark.slow
def test_what_slurm_refuses_is_told_in_its_words(tmp_path: Path, cluster: None) -> None:
    with pytest.raises(EngineError, match=r"invalid partition.*\[cluster-refuses\]"):
        trained(
            tmp_path / "run",
            Training("sft", tmp_path),
            Slurm(SETTINGS.model_copy(update={"partition": "nowhere"}), None),
        )


def test_a_folder_that_is_not_shared_and_other_versions_are_refused(tmp_path: Path) -> None:
    (tmp_path / task.NONCE).write_text("one")
    with pytest.raises(EngineError, match=r"is not what the machines of the cluster see there.*\[cluster-folder\]"):
        task.compare(tmp_path, 1)
    task.hello(tmp_path, 0)
    task.compare(tmp_path, 1)
    file = tmp_path / f"{task.HELLO}0.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "versions": {**said["versions"], "torch": "1.0"}, "host": "n7"}))
    with pytest.raises(EngineError, match=r"n7 has other versions: torch .* here and 1\.0 there.*\[cluster-versions\]"):
        task.compare(tmp_path, 1)
    file.write_text(json.dumps({**said, "nonce": "another"}))
    with pytest.raises(EngineError, match=r"\[cluster-folder\]"):
        task.compare(tmp_path, 1)
