"""The run folder: content keys, atomic publishing, the lock.

    artifacts/KEY/   whole: payload + artifact.json, never changed again
    work/KEY/        under way: stage.json, scratch/ (checkpoints, shards, log), out/ (the payload to be)
    run.json         which artifact each stage of each round is
    round-N/NAME     relative links into artifacts/

An artifact appears under its name by one rename, after its files and folders were fsynced; so a folder
under `artifacts/` is whole. What this does not cover: a file damaged on disk later (see `damaged_files`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import DamagedError, InputError, LockedError

MANIFEST = "artifact.json"


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON value that keys are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def artifact_key(
    stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], outside: Mapping[str, str]
) -> str:
    """`STAGE-` and 16 hex digits of the SHA-256 of all that decides the stage's result.

    `inputs` are the keys of the artifacts it reads; `outside` the hashes of what comes from outside the run.
    """
    decides = {"stage": stage, "version": version, "config": config, "inputs": inputs, "outside": outside}
    return f"{stage}-{hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:16]}"


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_hash(folder: Path) -> str:
    """One SHA-256 over the names and contents of all files below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = {str(path.relative_to(folder)): file_hash(path) for path in files}
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Replace the file at `path` in one step: a reader sees the old text or the new one."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    fsync(part)
    part.rename(path)
    fsync(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Raises DamagedError when the file is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{path}: not a JSON object")
    return value


def publish(work: Path, artifacts: Path, manifest: Mapping[str, Any]) -> Path:
    """Turn `work/out` into `artifacts/KEY` (KEY is the name of `work`) and remove the rest of `work`.

    `manifest` becomes `artifact.json`, with size and SHA-256 of each file added.
    """
    out = work / "out"
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != MANIFEST)
    described = {str(path.relative_to(out)): {"size": path.stat().st_size, "sha256": file_hash(path)} for path in files}
    for path in files:
        fsync(path)
    write_durably(out / MANIFEST, json.dumps({**manifest, "files": described}, indent=1, ensure_ascii=False) + "\n")
    for folder in {path.parent for path in files}:
        fsync(folder)
    target = artifacts / work.name
    out.rename(target)
    fsync(artifacts)
    shutil.rmtree(work, ignore_errors=True)
    return target


def link_name(number: int, stage: str) -> str:
    """Where a person finds the artifact of a round's stage: `round-1/reward-model`."""
    return f"round-{number}/{'filtered' if stage == 'filters' else stage.replace('_', '-')}"


def damaged_files(artifact: Path) -> list[str]:
    """Names of the artifact's files that are missing or differ from what its manifest says."""
    try:
        files = read_json(artifact / MANIFEST)["files"]
        return [
            name
            for name, expected in files.items()
            if not (artifact / name).is_file()
            or (artifact / name).stat().st_size != expected["size"]
            or file_hash(artifact / name) != expected["sha256"]
        ]
    except (DamagedError, KeyError, TypeError, AttributeError):
        return [MANIFEST]


class Store:
    """The folder of one run. Creates what is missing; never replaces an artifact."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artifacts = root / "artifacts"
        self.work = root / "work"

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """The run's folder, made if need be and locked.

        When what the user gave turns out to be wrong before anything was made, nothing is left behind.
        """
        new = not self.root.exists()
        try:
            self.artifacts.mkdir(parents=True, exist_ok=True)
            self.work.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot be the run's folder: {error.strerror}", file=str(self.root)) from error
        try:
            with self.lock():
                yield
        except InputError:
            if new and not any(self.artifacts.iterdir()):
                shutil.rmtree(self.root)
            raise

    def path(self, key: str) -> Path:
        return self.artifacts / key

    def has(self, key: str) -> bool:
        return (self.artifacts / key / MANIFEST).is_file()

    def manifest(self, key: str) -> dict[str, Any]:
        return read_json(self.artifacts / key / MANIFEST)

    def begin(self, key: str, stage: Mapping[str, Any]) -> Path:
        """The work folder of an artifact to be, with `stage.json` in it. What an earlier try left stays in
        `scratch/`, for the stage to resume from; `out/` starts empty."""
        folder = self.work / key
        (folder / "scratch").mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir()
        write_durably(folder / "stage.json", json.dumps(stage, indent=1, ensure_ascii=False) + "\n")
        return folder

    def incomplete(self, key: str) -> list[str]:
        """Names of files that are gone or of another size. Contents are not read: see `damaged_files`."""
        files, folder = self.manifest(key)["files"], self.path(key)
        return [
            name
            for name, expected in files.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != expected["size"]
        ]

    def read_run(self) -> dict[str, Any]:
        path = self.root / "run.json"
        return read_json(path) if path.exists() else {}

    def write_run(self, run: Mapping[str, Any], recipe: str) -> None:
        """`run.json` says which artifact is what, `recipe.yaml` what they were made from, every default written out."""
        write_durably(self.root / "recipe.yaml", recipe)
        write_durably(self.root / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")

    def relink(self, rounds: Sequence[Mapping[str, Any]]) -> None:
        """Make the links what `rounds` (of run.json) say, and remove those that they do not say."""
        wanted = {
            link_name(entry["round"], stage): self.path(key)
            for entry in rounds
            for stage, key in entry["stages"].items()
        }
        policies = [entry["policy"] for entry in rounds if "policy" in entry]
        if policies:
            wanted["policy"] = self.root / policies[-1]  # an absolute path (the base model's) stays itself
        for link in [self.root / "policy", *self.root.glob("round-*/*")]:
            if link.is_symlink() and str(link.relative_to(self.root)) not in wanted:
                link.unlink()
        for name, path in wanted.items():
            self.link(name, path)
        for folder in self.root.glob("round-*"):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if empty

    def link(self, name: str, path: Path) -> None:
        """Point `name` (such as `round-1/sft`) at a folder. Where links cannot be made, run.json still tells."""
        link = self.root / name
        inside = path.is_relative_to(self.root)
        target = os.path.relpath(path, link.parent) if inside else str(path)
        if link.is_symlink() and os.readlink(link) == target:
            return
        with contextlib.suppress(OSError):
            link.parent.mkdir(exist_ok=True)
            part = link.with_name(f".{link.name}.part")
            part.unlink(missing_ok=True)
            part.symlink_to(target)
            part.replace(link)

    @contextlib.contextmanager
    def lock(self, name: str = "lock") -> Iterator[None]:
        """Hold the run for this process. The kernel lets go of it when the process dies, so none is ever stale.
        Another `name` holds something else of it: a run can be pushed while it goes on, but by one at a time.

        Raises LockedError naming the owner. Not covered: file systems without `flock` between hosts.
        """
        with (self.root / name).open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise LockedError(
                    f"{self.root}: {owner} is working on this run; wait for it, stop it, or choose another --run"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield
