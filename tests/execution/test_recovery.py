"""A stage that dies is tried again by itself, goes on where it was, and ends with the same bits; others just stop."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from support import breaking
from support.interrupted import STEPS, Training
from support.loop_runs import FakeLauncher
from support.planned import done, planned

from posttrain.errors import (
    DataError,
    EmptyStageError,
    NonFiniteError,
    PosttrainError,
    ResourceError,
    StageCrashedError,
    StageError,
)
from posttrain.execution import retry
from posttrain.execution.launcher import Ended, Forked
from posttrain.storage.files import file_hash
from posttrain.storage.store import Store

DIED = StageCrashedError("killed")


@pytest.mark.parametrize(
    ("failures", "attempts", "how"),
    [
        ([DIED], 3, "same"),
        ([DIED, DIED], 3, "halved"),
        ([DIED, DIED, DIED], 3, None),
        ([DIED], 1, None),
        ([NonFiniteError("nan", 6)], 3, "same"),
        ([NonFiniteError("nan", 6), NonFiniteError("nan", 6)], 3, None),  # the same again
        ([NonFiniteError("nan", 6), NonFiniteError("nan", 8)], 3, "halved"),
        ([DIED, NonFiniteError("nan", 6), NonFiniteError("nan", 6)], 9, None),
        ([StageError("a mistake of ours")], 3, None),
        ([EmptyStageError("no row")], 3, None),
        ([ResourceError("full")], 3, None),
        ([DataError("line 3")], 3, None),
    ],
)
def test_only_what_may_not_come_again_is_tried_again(
    failures: Sequence[Exception], attempts: int, how: str | None
) -> None:
    assert retry.next_try(failures, attempts) == how


def test_what_ended_a_stage_is_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "sft-0123"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(b"1234")
    full = OSError(errno.ENOSPC, "No space left on device", "/there/model.safetensors")
    try:
        try:
            raise full
        except OSError as error:
            raise RuntimeError("unexpected pos 704 vs 598") from error  # as torch does
    except RuntimeError as error:
        told = retry.explained(error, folder)
    assert isinstance(told, ResourceError)
    assert "sft: the disk is full: /there/model.safetensors" in str(told)
    assert "work under way 4." in str(told)
    short_write = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # and no more
    assert isinstance(retry.explained(short_write, folder), ResourceError)
    for passing in (
        BrokenProcessPool("a child"),
        MemoryError(),
        RuntimeError("CUDA error: x"),
        OSError(errno.EIO, "x"),
    ):
        assert isinstance(retry.explained(passing, folder), StageCrashedError)
    mistake = retry.explained(KeyError("x"), folder)
    assert type(mistake) is StageError and "sft failed: KeyError" in str(mistake)
    given = DataError("line 3")
    assert retry.explained(given, folder) is given


class Dies(FakeLauncher):
    """Its stages die so often; it notes with how many processes each was started, and what was in its scratch."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.workers, self.micro_batches = times, list[int](), list[int | None]()

    def start(self, folder: Path, workers: int, background: bool = False) -> None:
        super().start(folder, workers, background)
        self.workers.append(workers)
        fitted = folder / "scratch" / "micro_batch.json"
        self.micro_batches.append(json.loads(fitted.read_text()) if fitted.exists() else None)

    def wait(self) -> Ended:
        if len(self.workers) <= self.times:
            return Ended(self.started.pop(0), StageCrashedError(f"death {len(self.workers)}"))
        return super().wait()


def test_the_second_try_is_the_same_and_the_third_has_half_of_all(tmp_path: Path) -> None:
    launcher = Dies(2)
    told = done(tmp_path / "run", launcher, planned(Training("sft", tmp_path)))
    assert launcher.workers == [8, 8, 4]
    assert launcher.micro_batches == [None, None, 2]  # the section asks for 4
    assert ["as it was" in told[0], "half as large" in told[1], len(told)] == [True, True, 2]


def test_then_it_stops_and_each_try_is_written_down(tmp_path: Path) -> None:
    launcher, what = Dies(99), planned(Training("sft", tmp_path))
    with pytest.raises(StageCrashedError, match="death 3"):
        done(tmp_path / "run", launcher, what)
    folder = tmp_path / "run" / "work" / "sft-0123"
    assert [each["message"] for each in retry.failed_before(folder)] == ["death 1", "death 2", "death 3"]
    assert "death 3\nsft-0123 is not tried again" in (folder / "scratch" / "log.txt").read_text()
    again = Dies(1)  # by the same command: it starts to count anew, and knows what did not fit
    done(tmp_path / "run", again, what)
    assert again.micro_batches == [2, 2]


def broken(root: Path, training: Training, how: str, step: int, times: int = 1) -> tuple[Store, list[str]]:
    """The stage in processes of its own, broken `times` times after a step."""
    what = planned(training)
    run = Store(root)
    with run.session():
        scratch = run.begin(what.key, what.stage) / "scratch"
    (scratch / "break.json").write_text(json.dumps({"how": how, "step": step, "times": times}))
    return run, done(root, Forked(breaking.stage), what, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how", "step"),
    [
        ("sft", "killed", 5),
        ("sft", "poisoned", 5),
        ("reward_model", "poisoned", 5),
        ("dpo", "poisoned", 5),
        ("sft", "poisoned", 4),
    ],
)
def test_a_training_that_dies_goes_on_by_itself_and_ends_with_the_same_bits(
    tmp_path: Path, name: str, how: str, step: int
) -> None:
    """Poisoned after step 4, the weights of that step's checkpoint are no numbers: it goes on from the one before."""
    whole = Training(name, tmp_path)
    whole.go()
    run, told = broken(tmp_path / "run", whole, how, step)
    assert len(told) == 1
    manifest = run.manifest(f"{name}-0123")
    assert file_hash(run.path(f"{name}-0123") / "model.safetensors") == whole.bits()
    assert manifest["metrics"]["resumed_at"] == (2 if step == 4 else 4)
    assert manifest["metrics"]["steps"] == STEPS
    (tried,) = manifest["attempts"]
    assert tried["error"] == ("StageCrashedError" if how == "killed" else "NonFiniteError")
    assert ("SIGKILL" if how == "killed" else "It began from tiny-base") in tried["message"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set by what Linux tells")
def test_a_training_that_runs_out_of_memory_goes_on_with_half_the_micro_batch(tmp_path: Path) -> None:
    run, told = broken(tmp_path / "run", Training("sft", tmp_path), "out_of_memory", step=3)
    metrics = run.manifest("sft-0123")["metrics"]
    assert (told, metrics["steps"], metrics["micro_batch"]) == ([], STEPS, 2)  # the section asks for 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "tries", "error"),
    [("device_failed", 3, StageCrashedError), ("own_mistake", 1, StageError)],
)
def test_what_comes_again_and_again_stops_the_stage(
    tmp_path: Path, how: str, tries: int, error: type[PosttrainError]
) -> None:
    with pytest.raises(error) as caught:
        broken(tmp_path / "run", Training("sft", tmp_path), how, step=1, times=99)
    assert type(caught.value) is error and caught.value.exit_code == 3
    scratch = tmp_path / "run" / "work" / "sft-0123" / "scratch"
    assert len(list(scratch.glob("broken-*"))) == tries
    assert not list((tmp_path / "run" / "artifacts").iterdir())


def test_a_failed_try_is_noted_without_the_secrets_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "plain-looking-12")
    (tmp_path / "scratch").mkdir()
    retry.note(tmp_path, StageError("401 with the key plain-looking-12"), 1.0, None)
    (tried,) = retry.failed_before(tmp_path)
    assert tried["message"] == "401 with the key (left out)"
    assert "plain-looking" not in (tmp_path / "scratch" / "log.txt").read_text()
