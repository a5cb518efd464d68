"""Kills real runs, and damages their files. For a new stage, one line in a test:

    faults.survives(whole, "my_stage", tmp_path)

`whole` is a run that was never killed (see `finished`); the stage is done again from its inputs and killed on the way.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.storage import store
from posttrain.storage.files import file_hash
from support.command import TYPES

HERE = Path(__file__).parent
# The quickstart in seconds, with several shards and checkpoints in every stage.
REDUCED = {
    **TYPES,
    "prompts.train.rows": ":160",
    "prompts.dev.rows": ":24",
    "prompts.heldout.rows": ":24",
    "engine.shard_tokens": "1100",
    "preferences.prompts": "48",
    "preferences.k": "2",
    "preferences.keep": "[significantly_better, better, slightly_better, marginally_better]",
    "samples.prompts": "60",
    "samples.k": "2",
    "samples.max_new_tokens": "32",
    "pairs.prompts": "48",
    "pairs.k": "2",
    "pairs.margin": "0",
    "evaluate.k": "2",
    "reward_model.max_steps": "6",
    "reward_model.per_device_train_batch_size": "8",
    "reward_model.save_steps": "2",
    "sft.per_device_train_batch_size": "8",
    "sft.save_steps": "2",
    "dpo.per_device_train_batch_size": "8",
    "dpo.save_steps": "2",
    "promote": "always",
    "compute.stages_at_once": "2",
    "compute.workers": "2",
}
PIECE = re.compile(r"(work/.*)\.[0-9a-f]{32}\.parquet$")
SAVE_STEPS, WORKERS, STAGES_AT_ONCE = 2, 2, 2


@dataclass
class Attempt:
    """One start of the command. `journal`: what it did, line by line (see `faulty/sitecustomize.py`)."""

    returncode: int
    journal: list[list[str]]
    errors: str

    @property
    def killed(self) -> bool:
        return self.returncode == -9


@dataclass
class Faulty:
    """A run whose command is started again and again. `root`: the run's folder; its journals lie beside it."""

    root: Path
    n: int = 1
    overrides: dict[str, str] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)

    def attempt(self, kill_at: int = 0, leader_alone: bool = False) -> Attempt:
        """Start the command; SIGKILL its process group, or the command alone, at this line of its journal (from 1)."""
        journal = self.root.with_name(f"{self.root.name}.journal")
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.unlink(missing_ok=True)
        words = [sys.executable, "-m", "posttrain", "round", "--n", str(self.n), "--run", str(self.root)]
        for key, value in {**REDUCED, **self.overrides}.items():
            words += ["--set", f"{key}={value}"]
        path = os.pathsep.join([str(HERE / "faulty"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        told = {"FAULTS_JOURNAL": str(journal), "FAULTS_ROOT": str(self.root), "FAULTS_KILL_AT": str(kill_at)}
        alone = {"FAULTS_LEADER_ALONE": "1"} if leader_alone else {}
        errors = self.root.with_name(f"{self.root.name}.errors")
        with errors.open("w") as file:
            code = subprocess.Popen(
                words,
                env={**os.environ, **told, **alone, "PYTHONPATH": path},
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=file,
            ).wait()  # where the command alone was killed, its stages may still be on their way out
        lines = journal.read_text().splitlines() if journal.exists() else []
        made = Attempt(code, [line.split("\t") for line in lines], errors.read_text())
        self.attempts.append(made)
        return made

    def partial(self) -> list[str]:
        """Folders under `artifacts/` that are not whole, to the last byte."""
        folders = sorted((self.root / "artifacts").glob("*"))
        return [folder.name for folder in folders if store.damaged_files(folder)]

    def payloads(self) -> dict[str, dict[str, str]]:
        """The hash of every file of every artifact, but for the manifests, which tell how long a stage took."""
        folders = sorted((self.root / "artifacts").iterdir())
        return {
            folder.name: {name: file_hash(path) for name, path in store.payload(folder).items()} for folder in folders
        }

    def repeated_steps(self) -> list[int]:
        """For each training that was resumed, how many steps it did again."""
        done: dict[str, int] = {}
        repeated = []
        for attempt in self.attempts:
            first: dict[str, int] = {}
            steps = [(line[1], int(line[2])) for line in attempt.journal if line[0] == "step"]
            for key, step in steps:
                first.setdefault(key, step)
            repeated += [done[key] - step + 1 for key, step in first.items() if key in done]
            for key, step in steps:
                done[key] = max(step, done.get(key, 0))
        return repeated

    def repeated_shards(self) -> tuple[int, list[int]]:
        """How many finished shards were done again, and how many begun ones were lost by each kill."""
        finished: set[str] = set()
        again, lost = 0, []
        for attempt in self.attempts:
            # A line comes before what it tells of: a rename that is the last may not have happened.
            certain = attempt.journal[:-1] if attempt.killed else attempt.journal
            begun = {line[1] for line in certain if line[0] == "shard"}
            done = {match[1] for line in certain if line[0] == "os.rename" and (match := PIECE.match(line[1]))}
            again += len(finished & (begun | done))
            finished |= done
            if attempt.killed:
                lost.append(len(begun - done))
        return again, lost


def finished(root: Path, n: int = 1, **overrides: str) -> Faulty:
    """A run that was never killed."""
    run = Faulty(root, n, overrides)
    made = run.attempt()
    assert made.returncode == 0, made.errors
    return run


def survives(whole: Faulty, stage: str, folder: Path, kills: int = 4, seed: int = 0) -> None:
    """Do one stage of round 1 again, killed `kills` times on its way, and see that nothing is lost.

    Raises AssertionError: an artifact is partial, the run does not go on, comes out otherwise, or did work again that
    was finished.
    """
    root = Path(shutil.copytree(whole.root, folder / "run", symlinks=True))
    run = Faulty(root, whole.n, whole.overrides)
    key = store.Store(root).read_run()["rounds"][1]["stages"][stage]
    shutil.rmtree(root / "artifacts" / key)
    own = [at for at, line in enumerate(whole.attempts[0].journal, 1) if key in line[1]]
    random_ = random.Random(seed)
    for _ in range(kills):
        made = run.attempt(kill_at=random_.randint(1, max(2, len(own) // 2)), leader_alone=random_.random() < 0.25)
        assert made.killed or made.returncode == 0, made.errors
        assert run.partial() == []
    made = run.attempt()
    assert made.returncode == 0, made.errors
    assert run.payloads() == whole.payloads()
    assert max(run.repeated_steps(), default=0) <= SAVE_STEPS
    again, lost = run.repeated_shards()
    assert again == 0 and max(lost, default=0) <= WORKERS * STAGES_AT_ONCE


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """One bit of the byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: Sequence[Callable[[Path], None]] = (empty, cut, flip, Path.unlink)
