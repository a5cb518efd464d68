"""A training in two processes is the training in one: the ranks share its micro-batches."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.interrupted import BATCH, SECTIONS, Training
from torch.distributed.tensor import DTensor

from posttrain.errors import NonFiniteError, StageCrashedError, StageError
from posttrain.execution import retry
from posttrain.training import run
from posttrain.training.ranks import in_ranks, rank, world

HOW = {"ddp": {"processes": 2}, "fsdp2": {"processes": 2, "shard": "fsdp2"}}
EPOCHS = 5  # of four steps


def training(name: str, folder: Path) -> Training:
    return Training(name, folder, num_train_epochs=EPOCHS, learning_rate=1e-4)


def furthest(one: Training, other: Training) -> float:
    """How far apart the weights are that they ended with."""
    mine, theirs = (load_file(each.folder / "out" / "model.safetensors") for each in (one, other))
    return max((mine[name].float() - theirs[name].float()).abs().max().item() for name in mine)


@pytest.mark.parametrize("name", SECTIONS)
def test_two_processes_end_with_the_losses_and_weights_of_one(tmp_path: Path, name: str) -> None:
    alone = training(name, tmp_path / "alone")
    one = alone.go()
    for how, runtime in HOW.items():
        shared = training(name, tmp_path / how)
        two = shared.go(runtime=runtime)
        assert one["steps"] == two["steps"] == 20
        assert two["processes"] == 2 and "processes" not in one
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert {name: two["last"][name] for name in one["last"]} == pytest.approx(one["last"], rel=1e-3, abs=1e-3)
        assert furthest(alone, shared) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo"])
def test_so_do_adapters_of_a_sharded_model(tmp_path: Path, name: str) -> None:
    alone, shared = training(name, tmp_path / "alone"), training(name, tmp_path / "shared")
    for each in (alone, shared):
        each.config["model"] |= {"lora": {"r": 4, "adapters": "keep"}}
    alone.go()
    shared.go(runtime=HOW["fsdp2"])
    assert furthest(alone, shared) < 1e-5
    kept = [load_file(each.folder / "out" / "adapter" / "adapter_model.safetensors") for each in (alone, shared)]
    assert {name: weight.shape for name, weight in kept[0].items()} == {name: w.shape for name, w in kept[1].items()}


def test_a_rank_of_fsdp2_holds_half_of_the_weights_gradients_and_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.Watch, "on_step_end", holds)
    monkeypatch.setattr(run.Watch, "on_pre_optimizer_step", holds, raising=False)
    monkeypatch.setenv("HELD", str(tmp_path))
    training("sft", tmp_path / "alone").go()
    training("sft", tmp_path / "shared").go(runtime=HOW["fsdp2"])
    whole = json.loads((tmp_path / "1-0").read_text())
    for number in (0, 1):
        part = json.loads((tmp_path / f"2-{number}").read_text())
        assert part.keys() == whole.keys() == {"weights", "gradients", "optimizer"}
        assert all(part[name] <= 0.55 * whole[name] for name in whole)


def holds(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
    """Writes how many bytes this rank holds: of gradients before a step, of the others behind it."""

    def size(tensors: Iterable[Any]) -> int:
        local = (each.to_local() if isinstance(each, DTensor) else each for each in tensors)
        return sum(each.numel() * each.element_size() for each in local)

    weights = list(given["model"].parameters())
    found = {"weights": size(weights)}
    if any(weight.grad is not None for weight in weights):
        found["gradients"] = size(weight.grad for weight in weights if weight.grad is not None)
    moments = [value for of in given["optimizer"].state.values() for value in of.values() if torch.is_tensor(value)]
    if moments:
        found["optimizer"] = size(moments)
    file = Path(os.environ["HELD"]) / f"{world()}-{rank()}"
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({name: max(found.get(name, 0), before.get(name, 0)) for name in {*found, *before}}))


def dies_once(monkeypatch: pytest.MonkeyPatch, number: int, step: int, flag: Path) -> None:
    """The rank of this number is killed behind this step, the first time."""
    told = run.Watch.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        told(self, args, state, control, **kwargs)
        if rank() == number and state.global_step == step and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(run.Watch, "on_step_end", on_step_end)


@pytest.mark.parametrize(("how", "number"), [("ddp", 0), ("fsdp2", 1)])
def test_with_a_rank_killed_it_goes_on_and_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, number: int
) -> None:
    runtime = HOW[how]
    whole, killed = Training("sft", tmp_path / "whole"), Training("sft", tmp_path / "killed")
    whole.go(runtime=runtime)
    dies_once(monkeypatch, number, 7, tmp_path / "died")
    with pytest.raises(StageCrashedError) as error:
        killed.go(runtime=runtime)
    assert retry.next_try([error.value], 2) == "same"
    assert killed.go(runtime=runtime)["resumed_at"] == 6
    assert killed.bits() == whole.bits()


def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, moved = Training("dpo", tmp_path / "whole"), Training("dpo", tmp_path / "moved")
    whole.go()
    dies_once(monkeypatch, 1, 5, tmp_path / "died")
    with pytest.raises(StageCrashedError):
        moved.go(runtime=HOW["ddp"])
    assert moved.go()["resumed_at"] == 4
    assert furthest(whole, moved) < 1e-4


def test_rows_that_cannot_be_shared_evenly_are_refused_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(
        StageError,
        match=rf"{BATCH} rows .* cannot be shared evenly by 3 .*\[training-processes\]",
    ):
        training("sft", tmp_path).go(runtime={"processes": 3})
    assert not list((tmp_path / "scratch").iterdir())


def test_what_a_rank_raises_is_raised() -> None:
    def fails() -> None:
        raise NonFiniteError(f"on rank {rank()} of {world()}", 3)

    with pytest.raises(NonFiniteError, match=r"on rank [01] of 2") as error:
        in_ranks(fails, 2)
    assert error.value.step == 3
