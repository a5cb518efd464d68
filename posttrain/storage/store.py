"""The run folder: content keys, atomic publishing, the lock.

    artifacts/KEY/   whole: payload + artifact.json, never changed again
    work/KEY/        under way: stage.json, scratch/ (checkpoints, shards, log), out/ (the payload to be)
    run.json         which artifact each stage of each round is
    round-N/NAME     relative links into artifacts/

An artifact appears under its name by one rename, after its files and folders were fsynced; so a folder
under `artifacts/` is whole. A file damaged on disk later is found by its hash, and a damaged `artifact.json` or
`run.json` by its own: before an artifact is read (`check`), and by `posttrain verify`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import DamagedError, InputError, PosttrainError
from posttrain.storage import lock
from posttrain.storage.files import (
    _repair,
    canonical_json,
    file_hash,
    fsync,
    read_sealed,
    remove,
    sealed,
    write_durably,
)

MANIFEST = "artifact.json"
ASIDE = "damaged"  # where `verify --repair` puts what it finds damaged


def artifact_key(
    stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], outside: Mapping[str, str]
) -> str:
    """The cache key: `STAGE-` and 16 hex digits of the SHA-256 of everything that decides the stage's result.

    `inputs`: keys of the input artifacts; `outside`: content hashes of files outside the run.
    """
    decides = {"stage": stage, "version": version, "config": config, "inputs": inputs, "outside": outside}
    return f"{stage}-{hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:16]}"


def publish(work: Path, artifacts: Path, manifest: Mapping[str, Any]) -> Path:
    """Moves `work/out` to `artifacts/KEY` (KEY is the name of `work`) and removes the rest of `work`.

    `manifest` becomes `artifact.json`, with size and SHA-256 of each file added; `same_as` names an
    earlier artifact with the same files: see `Store.canonical`.
    """
    out = work / "out"
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != MANIFEST)
    described = {str(path.relative_to(out)): {"size": path.stat().st_size, "sha256": file_hash(path)} for path in files}
    for path in [*files, *(path for path in out.rglob("*") if path.is_dir())]:
        fsync(path)
    earlier = _with_files(artifacts, work.name, described)
    same = {"same_as": earlier} if earlier else {}
    write_durably(out / MANIFEST, sealed({**manifest, **same, "files": described}))
    target = artifacts / work.name
    out.rename(target)
    fsync(artifacts)
    shutil.rmtree(work, ignore_errors=True)
    return target


def _with_files(artifacts: Path, key: str, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """An artifact of the same stage that has these files, the first of those there are."""
    for folder in sorted(artifacts.glob(f"{key.rpartition('-')[0]}-*")) if files else ():
        with contextlib.suppress(DamagedError, KeyError):
            there = read_manifest(folder)
            if there["files"] == files:
                return there.get("same_as", folder.name)
    return None


def link_name(number: int, stage: str) -> str:
    """The name of the link to a round's artifact: `round-1/reward-model`."""
    return f"round-{number}/{'filtered' if stage == 'filters' else stage.replace('_', '-')}"


def read_manifest(artifact: Path) -> dict[str, Any]:
    """Reads an artifact's manifest. Raises DamagedError if it does not match its hash."""
    known = ("stage", "key", "input_keys", "outside", "config", "versions", "seconds", "metrics", "files")
    return read_sealed(artifact / MANIFEST, known)


def payload(artifact: Path) -> dict[str, Path]:
    """The artifact's files by name. Hidden files are skipped: they belong to the file system or a viewer."""
    files = (path for path in sorted(artifact.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(artifact)): path for path in files if path != artifact / MANIFEST}


def damaged_files(artifact: Path) -> list[str]:
    """Names of files that are missing, differ from the artifact's manifest, or are not in it."""
    try:
        expected = read_manifest(artifact)["files"]
        there = payload(artifact)
        changed = [name for name in expected if name not in there or not _is(there[name], expected[name])]
    except (DamagedError, KeyError, TypeError, AttributeError):
        return [MANIFEST]
    return changed + [name for name in there if name not in expected]


def _is(path: Path, expected: Mapping[str, Any]) -> bool:
    return path.stat().st_size == expected["size"] and file_hash(path) == expected["sha256"]


class Store:
    """The folder of a run. Creates what is missing; never replaces an artifact."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artifacts = root / "artifacts"
        self.work = root / "work"
        self._checked: set[str] = set()  # artifacts whose files were hashed by this command

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """A context in which the run's folder exists and is locked.

        If the input turns out to be wrong before anything was made, the folder is removed again.
        """
        new = not self.root.exists()
        try:
            self.artifacts.mkdir(parents=True, exist_ok=True)
            self.work.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot be the run's folder: {error.strerror}", file=str(self.root), rule="command-run-folder"
            ) from error
        try:
            with self.lock():
                yield
        except PosttrainError as error:
            unused = isinstance(error, InputError) or not any(self.work.iterdir())
            if new and unused and not any(self.artifacts.iterdir()):
                shutil.rmtree(self.root)
            raise

    def path(self, key: str) -> Path:
        return self.artifacts / key

    def has(self, key: str) -> bool:
        """Whether the artifact was published. Its manifest may have been damaged since."""
        return (self.artifacts / key).exists()

    def manifest(self, key: str) -> dict[str, Any]:
        return read_manifest(self.artifacts / key)

    def canonical(self, key: str) -> str:
        """The key that enters the keys of an artifact's readers: that of the first with the same files, so that what
        changes no byte of a stage's result makes no reader anew. Its own, where that first one was made again since
        and came out otherwise. The artifact itself may be gone: then the key is kept."""
        made = self.manifest(key)
        first = made.get("same_as", key)
        try:
            return first if not self.has(first) or self.manifest(first)["files"] == made["files"] else key
        except DamagedError:
            return first

    def begin(self, key: str, stage: Mapping[str, Any]) -> Path:
        """Makes the work folder of a stage, with its `stage.json`. An earlier attempt's `scratch/` stays, for the stage
        to resume from; `out/` starts empty."""
        folder = self.work / key
        (folder / "scratch").mkdir(parents=True, exist_ok=True)
        with lock.alone(folder / "lock"):
            pass  # a stage of a command that was killed is gone now
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir()
        write_durably(folder / "stage.json", json.dumps(stage, indent=1, ensure_ascii=False) + "\n")
        return folder

    def incomplete(self, key: str) -> list[str]:
        """Names of files that are missing or of another size. Contents are not read: see `check`."""
        folder = self.path(key)
        try:
            files = self.manifest(key)["files"]
        except DamagedError:
            return [MANIFEST]
        return [
            name
            for name, expected in files.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != expected["size"]
        ]

    def set_aside(self, key: str) -> None:
        """Moves a damaged artifact to `damaged/`. It is kept until the stage has run again: see `aside_differs`."""
        aside = self.root / ASIDE
        aside.mkdir(exist_ok=True)
        shutil.rmtree(aside / key, ignore_errors=True)
        (self.artifacts / key).rename(aside / key)
        fsync(aside)
        fsync(self.artifacts)

    def aside_differs(self, key: str) -> bool:
        """Whether the artifact differs from the one that was set aside. False if none was."""
        aside = self.root / ASIDE / key
        if not aside.exists():
            return False
        try:
            before = {name: expected["sha256"] for name, expected in read_manifest(aside)["files"].items()}
        except DamagedError:
            before = {name: file_hash(path) for name, path in payload(aside).items()}
        return before != {name: expected["sha256"] for name, expected in self.manifest(key)["files"].items()}

    def drop_aside(self, key: str) -> None:
        remove(self.root / ASIDE / key)
        with contextlib.suppress(OSError):
            (self.root / ASIDE).rmdir()  # only if empty

    def made_from(self, key: str) -> list[str]:
        """Keys of all artifacts that were made from this one, directly or not."""
        reads, canonical = {}, {}
        for folder in self.artifacts.iterdir():
            with contextlib.suppress(DamagedError):
                manifest = read_manifest(folder)
                reads[folder.name] = set(manifest["input_keys"].values())
                canonical[folder.name] = manifest.get("same_as", folder.name)
        found = {key}
        while (
            more := {
                name for name, inputs in reads.items() if inputs & {*found, *(canonical.get(one, one) for one in found)}
            }
            - found
        ):
            found |= more
        return sorted(found - {key})

    def check(self, key: str) -> None:
        """Verifies the hashes of the artifact's files, once per command.

        Raises DamagedError if they differ from the manifest.
        """
        if key in self._checked:
            return
        damaged = damaged_files(self.path(key))
        if damaged:
            raise DamagedError(
                f"{self.path(key)}: {', '.join(damaged)} is not what was published. {_repair(self.path(key))}"
            )
        self._checked.add(key)

    def read_run(self) -> dict[str, Any]:
        """The content of run.json; empty if there is no run. Raises DamagedError."""
        path = self.root / "run.json"
        return read_sealed(path, ("version", "recipe", "rounds")) if path.exists() else {}

    def write_run(self, run: Mapping[str, Any], recipe: str) -> None:
        """Writes `run.json` (the artifact of each stage and round) and `recipe.yaml` (the recipe with all defaults)."""
        write_durably(self.root / "recipe.yaml", recipe)
        write_durably(self.root / "run.json", sealed(run))

    def wanted_links(self, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
        """The targets of the links for `rounds` (of run.json), by link name."""
        wanted = {
            link_name(entry["round"], stage): self.path(key)
            for entry in rounds
            for stage, key in entry["stages"].items()
        }
        policies = [entry["policy"] for entry in rounds if "policy" in entry]
        if policies:
            wanted["policy"] = self.root / policies[-1]  # an absolute path (the base model's) stays itself
        return wanted

    def relink(self, rounds: Sequence[Mapping[str, Any]]) -> None:
        """Makes the links for `rounds`, and removes all others."""
        wanted = self.wanted_links(rounds)
        for link in [self.root / "policy", *self.root.glob("round-*/*")]:
            if link.is_symlink() and str(link.relative_to(self.root)) not in wanted:
                link.unlink()
        for name, path in wanted.items():
            self.link(name, path)
        for folder in self.root.glob("round-*"):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if empty

    def link(self, name: str, path: Path) -> None:
        """Links `name` (such as `round-1/sft`) to a folder. Where links cannot be made, run.json says the same."""
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

    def lock(self, name: str = "lock") -> contextlib.AbstractContextManager[None]:
        """Locks the run for this process. Locks of another `name` are independent: a run can be pushed while it runs,
        but by one process at a time.

        Raises LockedError that names the owner.
        """
        return lock.held(self.root / name)
