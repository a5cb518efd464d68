"""Room is asked for before work begins, by the sizes of what is there; and a full disk leaves whole artifacts only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from support import faults

from posttrain.errors import ResourceError
from posttrain.execution import resources
from posttrain.execution.resources import COPIES, TOKEN, Need, counted
from posttrain.planning.check import check_run
from posttrain.recipe.load import load
from posttrain.storage import store
from posttrain.storage.store import Store

BASE = Path(__file__).parents[2] / "data" / "tiny-base"
LORA = {"load_in_4bit": False}


def test_parameters_are_counted_by_the_headers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(())}, tmp_path / "model.safetensors")
    assert counted(tmp_path) == 16
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    assert counted(tmp_path) == 9 / 4


def trained(lora: dict[str, bool] | None) -> dict[str, object]:
    config = {"sft": {"batch": 4}, "model": {"lora": lora}}
    return {"stage": "sft", "key": "sft-0", "inputs": {"model": str(BASE)}, "config": config, "runtime": {}}


def test_what_a_training_needs(tmp_path: Path) -> None:
    """Weights, gradients, two moments in float32; on the disk three checkpoints of weights and moments, and a model."""
    size = (BASE / "model.safetensors").stat().st_size
    count = counted(BASE)
    full, adapters = (resources.of_stage(trained(lora), tmp_path) for lora in (None, LORA))
    assert full == Need(3 * 12 * count + size, 16 * count)
    assert adapters.disk < full.disk / 3 and adapters.memory < full.memory / 3
    checkpoint = tmp_path / "work" / "sft-0" / "scratch" / "checkpoints"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"x" * 1000)
    assert resources.of_stage(trained(None), tmp_path).disk == full.disk - 1000  # what is there needs no room any more


def test_what_sampling_needs(tmp_path: Path) -> None:
    for name, rows in {"train": 40, "dev": 4, "heldout": 4}.items():
        pq.write_table(pa.table({"id": range(rows)}), tmp_path / f"{name}.parquet")
    stage = {
        "stage": "answers",
        "key": "answers-0",
        "inputs": {"prompts": str(tmp_path), "policy": str(BASE)},
        "config": {
            "set": "train",
            "where": {},
            "take": {"count": 30},
            "answers": {"k": 8, "max_new_tokens": 100},
            "greedy": False,
            "further": [],
        },
        "runtime": {},
    }
    need = resources.of_stage(stage, tmp_path)
    assert need == Need(30 * 8 * 100 * TOKEN * COPIES, (BASE / "model.safetensors").stat().st_size)
    assert resources.of_stage({**stage, "runtime": {"server": {}}}, tmp_path).memory == 0


def test_too_little_of_either_is_said_with_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5e9))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8e9))
    monkeypatch.setattr(resources, "gpu", lambda: False)
    resources.check(Need(4e9, 7e9), tmp_path / "not" / "there", "sft")
    with pytest.raises(
        ResourceError, match=r"sft need about 6\.0 GB on the disk, and 5\.0 GB are.*\[command-disk-room\]"
    ):
        resources.check(Need(6e9, 7e9), tmp_path, "sft")
    with pytest.raises(
        ResourceError, match=r"sft need about 9\.0 GB of memory, and 8\.0 GB are.*\[command-memory-room\]"
    ):
        resources.check(Need(0, 9e9), tmp_path, "sft")
    monkeypatch.setattr(resources, "gpu", lambda: True)
    resources.check(Need(0, 9e9), tmp_path, "sft")


def test_a_run_that_cannot_fit_is_stopped_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = load("quickstart", []), Store(tmp_path / "run")
    check_run(recipe, 1, run)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1e6))
    with pytest.raises(ResourceError, match=r"the models of these rounds \(6 of "):
        check_run(recipe, 2, run)
    assert not run.root.exists()


FILL = """
mount -t tmpfs -o size=100m tmpfs mnt
"$@" & command=$!
until ls -d mnt/run/work/reward_model-*/scratch/checkpoints/checkpoint-* >ls.txt 2>&1; do sleep 0.05; done
cat /dev/zero >mnt/ballast 2>errors.txt
wait $command; echo $? >first.txt
cp -a mnt/run/artifacts artifacts
rm mnt/ballast
"$@" & command=$!
until ls -d mnt/run/artifacts/reward_model-* >ls.txt 2>&1; do sleep 0.1; kill -0 $command || break; done
kill $command; wait $command; echo $? >second.txt
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_whole_artifacts_and_says_what_to_do(tmp_path: Path) -> None:
    """A tmpfs in a user namespace of its own, filled while a model is trained; with room again the run goes on."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    words = [sys.executable, "-m", "posttrain", "round", "--n", "1", "--run", "mnt/run"]
    words += [word for key, value in faults.REDUCED.items() for word in ("--set", f"{key}={value}")]
    (tmp_path / "mnt").mkdir()
    inside = ["unshare", "-Urm", "sh", "-c", FILL, "sh", *words]
    done = subprocess.run(inside, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert (tmp_path / "first.txt").read_text() == "3\n", done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "on the disk" in done.stderr or "the disk is full" in done.stderr
    folders = list((tmp_path / "artifacts").iterdir())
    assert folders and not any(store.damaged_files(folder) for folder in folders)
    assert (tmp_path / "second.txt").read_text() == "143\n", done.stderr  # past where it stopped, and ended by us
