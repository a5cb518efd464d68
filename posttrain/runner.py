"""Does a stage of a round, or finds it done; keeps run.json and the links; says what runs again and why."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from posttrain import store
from posttrain.errors import DamagedError, InputError, PosttrainError
from posttrain.launch import Launcher
from posttrain.recipe import Recipe
from posttrain.stages import STAGES


@dataclass(frozen=True)
class Artifact:
    """What a stage made, or a model that came from outside the run (then `path` is absolute)."""

    key: str
    path: Path


class Watcher(Protocol):
    """Is told what happens, as it happens. Printing is its business."""

    def runs_again(self, reason: str) -> None: ...
    def started(self, number: int, stage: str) -> None: ...
    def progress(self, done: int, total: int, unit: str) -> None: ...
    def finished(self, number: int, stage: str, seconds: float, metrics: Mapping[str, Any]) -> None: ...
    def round_done(self, number: int, ran: bool) -> None: ...


class Silent:
    """A watcher that says nothing."""

    def runs_again(self, reason: str) -> None: ...
    def started(self, number: int, stage: str) -> None: ...
    def progress(self, done: int, total: int, unit: str) -> None: ...
    def finished(self, number: int, stage: str, seconds: float, metrics: Mapping[str, Any]) -> None: ...
    def round_done(self, number: int, ran: bool) -> None: ...


class Runner:
    """Walks through the stages of a run.

    As long as the walk meets the keys that run.json already has, run.json stays as it is; from the first stage that
    differs, what it said of later ones is dropped.
    """

    def __init__(self, run: store.Store, launcher: Launcher, watcher: Watcher, workers: int, recipe: Recipe) -> None:
        self.store, self.launcher, self.watcher, self.workers = run, launcher, watcher, workers
        self.old: list[dict[str, Any]] = run.read_run().get("rounds", [])
        files = {name: run.root / name for name in ("run.json", "recipe.yaml")}
        self._before = {name: path.read_text("utf-8") if path.exists() else None for name, path in files.items()}
        self.rounds: list[dict[str, Any]] = []
        self.recipe = recipe
        self.ran = False

    def begin_round(self, number: int) -> None:
        self.rounds.append({"round": number, "stages": {}})
        self.ran = False

    def stage(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        seed: int,
        outside: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        decides: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """The artifact of this stage: found whole under its key, or made now.

        `decides` is what of `config` decides the result, where that is not all of it.
        """
        decides = {**(config if decides is None else decides), "seed": seed}
        number = self.rounds[-1]["round"]
        outside = outside or {}
        input_keys = {role: artifact.key for role, artifact in inputs.items()}
        key = store.artifact_key(name, STAGES[name], decides, input_keys, outside)
        if self.store.has(key):
            lost = self.store.incomplete(key)
            if lost:
                raise DamagedError(
                    f"{self.store.path(key)}: {', '.join(lost)} is gone or cut; remove this folder and run the same "
                    "command again: the stage is then done anew"
                )
        else:
            old = self._old_key(number, name)
            if old is not None and old != key:
                self._say_why(number, name, old, decides, input_keys, outside)
            self._make(
                key,
                {
                    "stage": name,
                    "key": key,
                    "input_keys": input_keys,
                    "inputs": {role: self._relative(artifact.path) for role, artifact in inputs.items()},
                    "outside": dict(outside),
                    "decides": decides,
                    "config": dict(config),
                    "settings": dict(settings or {}),
                    "seed": seed,
                },
            )
        self._record(number, name, key)
        return Artifact(key, self.store.path(key))

    def metrics(self, artifact: Artifact) -> dict[str, Any]:
        return self.store.manifest(artifact.key)["metrics"]

    def end_round(self, promoted: bool, policy: Artifact) -> None:
        self.rounds[-1]["promoted"] = promoted
        self.rounds[-1]["policy"] = self._relative(policy.path)
        self._write()
        self.store.relink(self._known())
        self.watcher.round_done(self.rounds[-1]["round"], self.ran)

    def end(self) -> None:
        """Bring run.json and the links up to date. Later rounds of an unchanged run stay known."""
        self._write()
        self.store.relink(self._known())

    def _make(self, key: str, stage: dict[str, Any]) -> None:
        number, name = self.rounds[-1]["round"], stage["stage"]
        self.ran = True
        self.watcher.started(number, name)
        started = time.monotonic()
        folder = self.store.begin(key, stage)
        try:
            self.launcher.run(folder, self.workers, self.watcher.progress)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
            self._restore()
            raise
        if not self.store.has(key):
            raise PosttrainError(f"{name} ended without publishing {key}; log: {folder / 'scratch' / 'log.txt'}")
        self.watcher.finished(number, name, time.monotonic() - started, self.store.manifest(key)["metrics"])

    def _record(self, number: int, name: str, key: str) -> None:
        self.rounds[-1]["stages"][name] = key
        if self.ran:
            self._write()
        self.store.link(f"round-{number}/{name.replace('_', '-')}", self.store.path(key))

    def _known(self) -> list[dict[str, Any]]:
        return self.old if self.rounds == self.old[: len(self.rounds)] else self.rounds

    def _write(self) -> None:
        run = {"version": 1, "recipe": self.recipe.name, "rounds": self._known()}
        if run != self.store.read_run():
            self.store.write_run(run, self.recipe.dump())

    def _restore(self) -> None:
        """What was given is wrong: the run is again what it was before this command, but for finished artifacts."""
        for name, text in self._before.items():
            path = self.store.root / name
            if text is None:
                path.unlink(missing_ok=True)
            elif path.read_text("utf-8") != text:
                store.write_durably(path, text)
        self.store.relink(self.old)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.store.root)) if path.is_relative_to(self.store.root) else str(path)

    def _old_key(self, number: int, name: str) -> str | None:
        for entry in self.old:
            if entry["round"] == number:
                return entry["stages"].get(name)
        return None

    def _say_why(
        self,
        number: int,
        name: str,
        old_key: str,
        decides: Mapping[str, Any],
        input_keys: Mapping[str, str],
        outside: Mapping[str, str],
    ) -> None:
        if not self.store.has(old_key):
            self.watcher.runs_again(f"{name} of round {number} runs again: its artifact {old_key} is gone")
            return
        old = self.store.manifest(old_key)
        reasons = differences(old["config"], decides)
        reasons += changed_roles(old["outside"], outside, "the content of {} changed")
        made_here = {key for entry in self.rounds for key in entry["stages"].values()}
        from_outside = {role: key for role, key in input_keys.items() if key not in made_here}
        old_inputs = old["input_keys"]
        still = {role: old_inputs[role] for role in old_inputs if role in from_outside or role not in input_keys}
        reasons += changed_roles(still, from_outside, "another {}")
        reasons += [
            f"{role} is new" for role in input_keys if role not in old["input_keys"] and role not in from_outside
        ]
        if not reasons:
            return  # only inputs that were made anew changed: said with the stages that made them
        follow = [f"{stage} of round {at}" for at, stage in self._after(old_key)]
        then = f"; then what follows from it: {', '.join(follow)}" if follow else ""
        self.watcher.runs_again(f"{name} of round {number} runs again: {'; '.join(reasons)}{then}")

    def _after(self, key: str) -> list[tuple[int, str]]:
        """Stages of the old run that were made from the artifact, directly or not."""
        stale, found = {key}, []
        for entry in self.old:
            for name, made in entry["stages"].items():
                if self.store.has(made) and stale & set(self.store.manifest(made)["input_keys"].values()):
                    stale.add(made)
                    found.append((entry["round"], name))
        return found


def changed_roles(old: Mapping[str, str], new: Mapping[str, str], changed: str) -> list[str]:
    """One line for each name whose value changed, came or went."""
    lines = [changed.format(role) for role in new if role in old and old[role] != new[role]]
    lines += [f"{role} is new" for role in new if role not in old]
    return lines + [f"{role} is left out" for role in old if role not in new]


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What changed between two JSON values, one line each: `dpo.learning_rate 0.0001 → 0.0002`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = zip(old, new, strict=True)
        return [line for at, (before, after) in enumerate(pairs) for line in differences(before, after, f"{name}.{at}")]
    return [] if old == new else [f"{name} {json.dumps(old)} → {json.dumps(new)}"]
