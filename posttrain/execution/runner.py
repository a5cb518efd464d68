"""The cache-aware runner: finds a stage's artifact or queues the stage; keeps run.json; reports what runs again."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import DamagedError, InputError
from posttrain.execution import reruns
from posttrain.execution.artifact import Artifact, StageCall
from posttrain.execution.launcher import Launcher
from posttrain.execution.progress import Watcher
from posttrain.execution.scheduler import Planned, StageQueue
from posttrain.recipe.recipe import Recipe
from posttrain.stages.registry import STAGES, spec
from posttrain.storage import store
from posttrain.storage.files import remove, write_durably


class Runner:
    """Runs the stages that the loop submits. `submit` only queues; `metrics` and `end` wait.

    While the keys are those of run.json, run.json stays as it is; from the first stage that differs, its later entries
    are dropped. `after_round`: called for each round that is done, as `Watcher.round_done` is.
    """

    def __init__(
        self,
        run: store.Store,
        launcher: Launcher,
        watcher: Watcher,
        workers: int,
        recipe: Recipe,
        after_round: Sequence[Callable[[int, bool], None]] = (),
    ) -> None:
        self.store, self.watcher, self.recipe = run, watcher, recipe
        self.after_round = (watcher.round_done, *after_round)
        compute = recipe.compute
        self.queue = StageQueue(run, launcher, watcher, workers, compute.stages_at_once, compute.attempts)
        self.old: list[dict[str, Any]] = run.read_run().get("rounds", [])
        files = {name: run.root / name for name in ("run.json", "recipe.yaml")}
        self._before = {name: path.read_text("utf-8") if path.exists() else None for name, path in files.items()}
        self.rounds: list[dict[str, Any]] = []  # as planned; `_known` makes run.json's rounds of them
        self._ran: set[int] = set()  # rounds in which anything had to be done
        self._made: set[str] = set()  # keys, by this command; before there is any, nothing is written
        self._calls: dict[str, StageCall] = {}  # of what is in the queue, by key
        self._canonical: dict[str, str] = {}  # by artifact, the key that its readers' keys are made of, if another's
        self._superseded: dict[str, str] = {}  # keys that were planned, by what took their place: see `_cut_off`
        self._shown = 0  # rounds that the watcher knows to be done

    def begin_round(self, number: int) -> None:
        self.rounds.append({"round": number, "stages": {}})

    def submit(self, call: StageCall) -> Artifact:
        """The artifact of this stage: an existing one with its key, or one that is queued."""
        key = self._plan(call, self.rounds[-1]["round"])
        self.rounds[-1]["stages"][call.name] = key
        if key not in self.queue:
            self._link(self.rounds[-1]["round"], call.name, key)
        return Artifact(key, self.store.path(key))

    def _plan(self, call: StageCall, number: int, *, tell: bool = True) -> str:
        """Finds the stage of round `number` done, or puts it into the queue; returns its key. `tell`: say why it runs
        again."""
        config = {**call.config, "seed": call.seed}
        inputs = {role: self._resolve(artifact) for role, artifact in call.inputs.items()}
        input_keys = {role: self._canonical.get(artifact.key, artifact.key) for role, artifact in inputs.items()}
        key = store.artifact_key(call.stage, STAGES[call.stage].version, config, input_keys, call.external_hashes)
        if self.store.has(key):
            self._found(key)
        elif key not in self.queue:
            older, old = self._older, reruns.old_key(self.old, number, call.name)
            if tell and old not in (None, key, *older) and not spec(call.stage, call.name).check_only:
                self._say_why(number, old, call, config, input_keys)
            self._ran.add(number)
            stage = {
                "stage": call.stage,
                "role": call.name,
                "key": key,
                "input_keys": input_keys,
                "inputs": {role: self._relative(artifact.path) for role, artifact in inputs.items()},
                "outside": dict(call.external_hashes),
                "config": config,
                "runtime": dict(call.runtime),
                "seed": call.seed,
                "recipe": self._recipe_hash,
            }
            background = spec(call.stage, call.name).background
            reads = frozenset(artifact.path.name for artifact in inputs.values())
            self.queue.add(Planned(key, number, stage, reads, background, call.name))
            self._calls[key] = call
        return key

    def _resolve(self, artifact: Artifact) -> Artifact:
        """The artifact under the key that it has by now: see `_cut_off`."""
        key = self._superseded.get(artifact.key)
        return self._resolve(Artifact(key, self.store.path(key))) if key else artifact

    def _cut_off(self, made: Planned) -> None:
        """Early cut-off: where a stage's files are those of an earlier artifact, the stages that wait for it are
        planned again with that one's key as their input; many of them are then found done."""
        before = self.store.canonical(made.key)
        if before == made.key:
            return
        if before not in self._made:
            self.watcher.runs_again(f"{made.name} of round {made.number}: same result as before")
        self._canonical[made.key] = before
        for planned in self.queue.take_waiting():
            key = self._plan(self._calls[planned.key], planned.number, tell=False)
            if key == planned.key:
                continue
            self._superseded[planned.key] = key
            for entry in self.rounds:
                for name, was in entry["stages"].items():
                    if was == planned.key:
                        entry["stages"][name] = key

    def _found(self, key: str) -> None:
        """Checks an existing artifact: raises DamagedError if files are missing or of another size."""
        lost = self.store.incomplete(key)
        if lost:
            raise DamagedError(
                f"{self.store.path(key)}: {', '.join(lost)} is gone or damaged. `posttrain verify {self.store.root} "
                "--repair` sets it aside; the same command then runs this stage again"
            )
        remove(self.store.work / key)  # left by a kill that came right after it was published
        self._compare(key)
        before = self.store.canonical(key)
        if before != key:
            self._canonical[key] = before

    def _compare(self, key: str) -> None:
        """Compares an artifact that was made again, after damage, with its old hashes.

        Raises DamagedError if it differs; the artifacts that were made from the old one are set aside first.
        """
        stale = self.store.made_from(key) if self.store.aside_differs(key) else []
        for name in stale:
            self.store.set_aside(name)
        self.store.drop_aside(key)
        if stale:
            raise DamagedError(
                f"{key} was made again and is not what it was before (another machine, or other versions?), so "
                f"{len(stale)} artifacts that were made from it are set aside: the same command makes those again"
            )

    @functools.cached_property
    def _recipe_hash(self) -> str:
        return hashlib.sha256(self.recipe.dump().encode()).hexdigest()

    @functools.cached_property
    def _older(self) -> Collection[str]:
        """Keys of the run that another version of the program made; reported once, before the first new stage."""
        found = reruns.older(self.store, self.old)
        if found:
            self.watcher.runs_again(reruns.older_layout(found))
        return found

    def metrics(self, artifact: Artifact) -> dict[str, Any]:
        """The metrics of the stage; waits for it."""
        while self._resolve(artifact).key in self.queue:
            self._advance()
        return self.store.manifest(self._resolve(artifact).key)["metrics"]

    def end_round(self, promoted: bool, policy: Artifact) -> None:
        """Records the gate's decision. Background stages of the round may still be running."""
        self.rounds[-1]["promoted"] = promoted
        self.rounds[-1]["policy"] = self._relative(self._resolve(policy).path)
        if self._made or self.queue.empty():
            self._write()
        self._show_rounds()

    def end(self) -> None:
        """Waits for all queued stages; brings run.json and the links up to date."""
        while not self.queue.empty():
            self._advance()
        self._write()
        self.store.relink(self._known())

    def stop(self) -> None:
        """Ends running stages and empties the queue."""
        self.queue.stop()

    def _advance(self) -> None:
        try:
            made = self.queue.advance()
        except InputError:
            self.queue.stop()
            self._restore()
            raise
        if made is None:
            return
        self._made.add(made.key)
        self._compare(made.key)
        self._cut_off(made)
        self._write()
        for entry in self.rounds:
            for name, key in entry["stages"].items():
                if key not in self.queue:
                    self._link(entry["round"], name, key)
        self._show_rounds()

    def _link(self, number: int, name: str, key: str) -> None:
        self.store.link(store.link_name(number, name), self.store.path(key))

    def _show_rounds(self) -> None:
        """Reports rounds that are decided and finished, in order."""
        while self._shown < len(self.rounds):
            entry = self.rounds[self._shown]
            if "policy" not in entry or self.queue.busy(entry["round"]):
                return
            self._shown += 1
            self.store.relink(self._known())
            for done in self.after_round:
                done(entry["round"], entry["round"] in self._ran)

    def _known(self) -> list[dict[str, Any]]:
        """The rounds for run.json: finished stages of the rounds so far, and its later rounds while nothing differs."""
        whole = [
            {**entry, "stages": {name: key for name, key in entry["stages"].items() if key not in self.queue}}
            for entry in self.rounds
        ]
        same = all(_agree(old, new) for old, new in zip(self.old, self.rounds, strict=False))
        return whole + (self.old[len(whole) :] if same else [])

    def _write(self) -> None:
        run = {"version": 1, "recipe": self.recipe.name, "rounds": self._known()}
        if run != self.store.read_run():
            self.store.write_run(run, self.recipe.dump())

    def _restore(self) -> None:
        """Undoes this command's changes to the run, but for finished artifacts: called when the input was wrong. A run
        that this command began has no earlier state, and keeps what is done."""
        if self._made and self._before["run.json"] is None:
            return
        for name, text in self._before.items():
            path = self.store.root / name
            if text is None:
                path.unlink(missing_ok=True)
            elif path.read_text("utf-8") != text:
                write_durably(path, text)
        self.store.relink(self.old)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.store.root)) if path.is_relative_to(self.store.root) else str(path)

    def _say_why(
        self, number: int, old: str, call: StageCall, config: Mapping[str, Any], input_keys: Mapping[str, str]
    ) -> None:
        message = f"{call.name} of round {number} runs again"
        if not self.store.has(old):
            self.watcher.runs_again(f"{message}: its artifact {old} is gone")
            return
        made_here = {key for entry in self.rounds for key in entry["stages"].values()} | {*self._canonical.values()}
        reasons = reruns.why(self.store.manifest(old), config, input_keys, call.external_hashes, made_here)
        if not reasons:
            return
        follow = [f"{name} of round {at}" for at, name in reruns.following(self.store, self.old, old)]
        then = f"; then what follows from it: {', '.join(follow)}" if follow else ""
        self.watcher.runs_again(f"{message}: {'; '.join(reasons)}{then}")


def _agree(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a round of run.json equals the planned one in the entries that both have."""
    checks = {name for name, one in STAGES.items() if one.check_only}
    shared = (old["stages"].keys() & new["stages"].keys()) - checks
    return all(old["stages"][name] == new["stages"][name] for name in shared) and (
        "policy" not in old or "policy" not in new or old["policy"] == new["policy"]
    )
