"""Real runs of a reduced quickstart that are killed, stage by stage; `benchmarks/kills.py` kills a hundred times."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support import faults

from posttrain.storage.store import Store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> faults.Faulty:
    return faults.finished(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["preferences", "filters", "dpo"])
def test_a_stage_survives_being_killed(whole: faults.Faulty, stage: str, tmp_path: Path) -> None:
    faults.survives(whole, stage, tmp_path, kills=2)


@pytest.mark.slow
def test_a_run_killed_all_along_ends_with_the_same_bits(whole: faults.Faulty, tmp_path: Path) -> None:
    run, random_ = faults.Faulty(tmp_path / "run"), random.Random(0)
    for _ in range(5):
        made = run.attempt(kill_at=random_.randint(1, 300), leader_alone=random_.random() < 0.25)
        assert made.killed or made.returncode == 0, made.errors
        assert run.partial() == []
    assert run.attempt().returncode == 0
    assert run.payloads() == whole.payloads()


@pytest.mark.slow
def test_verify_tells_a_program_and_a_person(whole: faults.Faulty) -> None:
    def verify(*options: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "posttrain", "verify", str(whole.root), *options]
        return subprocess.run(words, capture_output=True, text=True)

    policy = Store(whole.root).root / "policy" / "model.safetensors"
    content = policy.read_bytes()
    said = json.loads(verify("--json").stdout)
    assert said["findings"] == [] and said["artifacts"] == 22
    try:
        faults.flip(policy)
        done = verify()
        assert done.returncode == 5
        assert "damaged: model.safetensors; runs again: dpo of round 1" in done.stdout
    finally:
        policy.write_bytes(content)
