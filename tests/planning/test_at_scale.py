"""The plan on machines that are not here, against arithmetic by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from posttrain.commands.check import lines_elsewhere
from posttrain.execution.resources import MicroBatch
from posttrain.planning.at_scale import DEVICES, Cluster, memory_notes, plan_at_scale
from posttrain.planning.fitting import Training
from posttrain.stages.amounts import Amounts, PlannedStage

H100 = Cluster(DEVICES["h100"], nodes=2, devices=8, trains=400.0, samples=200.0)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    called = [sys.executable, "-m", "posttrain", "check", "quickstart", *words]
    return subprocess.run(called, capture_output=True, text=True, timeout=120, check=False)


def stage(name: str, **inputs: str) -> PlannedStage:
    return PlannedStage(name, 1, name, name, {name: {"num_train_epochs": 2, "batch": 4}}, inputs, frozenset())


def training(name: str, length: int, lora: bool = False, checkpointed: bool = False, rows: int = 8) -> Training:
    micro = MicroBatch(rows, length, length, checkpointed=checkpointed)
    return Training(name, {"lora": {"r": 8} if lora else None}, micro)


def test_operations_are_those_of_the_formula() -> None:
    stages = [stage("answers"), stage("scores", reward_model="r"), stage("sft"), stage("dpo"), stage("filters")]
    stages += [stage("watch", reward_model="r", watch_model="w"), stage("benchmark"), stage("label_variants")]
    todo = {
        "answers": Amounts(prompts=10, completions=80, tokens=8000),
        "scores": Amounts(rows=80),
        "watch": Amounts(rows=40),
        "sft": Amounts(rows=30, steps=16),
        "dpo": Amounts(rows=20, steps=10, passes=20),
        "filters": Amounts(rows=80),
        "benchmark": Amounts(completions=3, tokens=300, read=700),
        "label_variants": Amounts(rows=9, read=500),
    }
    trainings = {"sft": training("sft", 150), "dpo": training("dpo", 250)}
    made = plan_at_scale(stages, todo, trainings, (50.0, 100.0), 1e9, H100)
    (only,) = made["rounds"]
    found = {one["stage"]: one for one in only["stages"]}
    assert set(found) == {"answers", "scores", "sft", "dpo", "watch", "benchmark", "label_variants"}
    assert found["answers"]["tflop"] == pytest.approx(2e9 * (8000 + 10 * 50) / 1e12)
    assert found["scores"]["tflop"] == pytest.approx(2e9 * 80 * 150 / 1e12)
    assert found["watch"]["tflop"] == pytest.approx(2 * 2e9 * 40 * 150 / 1e12)
    for name, tokens, rate in (("benchmark", 1000, 200), ("label_variants", 500, 400)):
        assert found[name]["tflop"] == pytest.approx(2e9 * tokens / 1e12)
        assert found[name]["device_hours"] == pytest.approx(found[name]["tflop"] / rate / 3600)
    assert found["sft"]["tflop"] == pytest.approx(6e9 * 2 * 30 * 150 / 1e12)
    assert found["dpo"]["tflop"] == pytest.approx((6e9 * 2 * 20 + 2e9 * 20) * 250 / 1e12)
    assert found["sft"]["device_hours"] == pytest.approx(found["sft"]["tflop"] / 400 / 3600)
    assert found["answers"]["device_hours"] == pytest.approx(found["answers"]["tflop"] / 200 / 3600)
    assert found["sft"]["hours"] == pytest.approx(found["sft"]["device_hours"] / 8)
    assert found["answers"]["hours"] == pytest.approx(found["answers"]["device_hours"] / 16)
    assert made["tflop"] == pytest.approx(sum(one["tflop"] for one in only["stages"]))
    again = {"sft": training("sft", 150, lora=True, checkpointed=True), "dpo": trainings["dpo"]}
    adapters = plan_at_scale(stages, todo, again, (50.0, 100.0), 1e9, H100)["rounds"][0]["stages"][2]
    assert adapters["tflop"] == pytest.approx((2 + 2 + 2) * 1e9 * 2 * 30 * 150 / 1e12)


def test_what_does_not_fit_into_a_device_is_told_with_what_would() -> None:
    full = [training("sft", 100, rows=16)]
    shards, read = memory_notes(8e9, full, H100)
    assert "128 GB" in shards and "fsdp2` holds 8 on each of 16" in shards
    assert "256 GB of a node's memory" in read
    too_large, _, server = memory_notes(400e9, full, H100)
    assert "400 on each of the 16 devices that can share 16 rows" in too_large and "over several nodes" in server
    assert "over 2 devices" in memory_notes(70e9, full, H100)[2]
    assert len(memory_notes(1e9, full, H100)) == 1


def test_a_training_has_the_devices_that_can_share_its_rows() -> None:
    assert [H100.of_training(rows) for rows in (1, 4, 6, 16, 64)] == [1, 4, 6, 16, 16]
    assert replace(H100, processes=8).of_training(64) == 8


def test_the_command_plans_for_other_machines() -> None:
    words = ["--device", "h100", "--devices", "8", "--nodes", "4", "--parameters", "8e9"]
    plan = json.loads(command(*words, "--trains", "500", "--json").stdout)["plan"]
    assert plan["cluster"]["nodes"] == 4 and plan["parameters"] == 8e9
    assert plan["cluster"]["trains"] == 500 and plan["cluster"]["samples"] == pytest.approx(0.22 * 989)
    (sft,) = [one for one in plan["rounds"][1]["stages"] if one["stage"] == "sft"]
    assert sft["device_hours"] == pytest.approx(sft["tflop"] / 500 / 3600)
    assert "8B parameters on 32 devices" in "\n".join(lines_elsewhere(plan, 1))
    for wrong in (["--device", "abacus"], ["--parameters", "8e9"], ["--nodes", "4"]):
        ended = command(*wrong)
        assert ended.returncode == 2 and "[command-device]" in ended.stderr
