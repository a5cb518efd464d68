"""Reads a run from its folder: the manifests by round, and what is missing.

Takes no lock and writes nothing: artifacts are whole or absent, and run.json is replaced in one step, so a run that is
under way is read as it was at that moment. Model weights are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from posttrain.config import RewardEntry
from posttrain.errors import DamagedError, InputError
from posttrain.storage.store import Store

A = TypeVar("A")


@dataclass(frozen=True)
class Round:
    """The finished stages of a round. `promoted` and `policy` are None until they are decided."""

    number: int
    promoted: bool | None
    policy: str | None  # the last promoted one after this round, relative to the run's folder; the base's is absolute
    keys: Mapping[str, str]  # by role, such as `sft` or `sft_variant_1`
    manifests: Mapping[str, Mapping[str, Any]]  # by role, of those that could be read

    def metrics(self, role: str) -> Mapping[str, Any]:
        """The metrics of a stage; empty if it is not finished or cannot be read."""
        return self.manifests.get(role, {}).get("metrics", {})

    def functions(self) -> dict[str, float]:
        """Weights, by name, of the reward functions that said which held-out answers are right."""
        entries = self.manifests.get("heldout", {}).get("config", {}).get("rewards", [])
        # Not validated: where a judge runs is not in a manifest.
        keys = ("use", "function", "weight")
        rewards = [RewardEntry.model_construct(**{key: entry[key] for key in keys}) for entry in entries]
        return {reward.name: reward.weight for reward in rewards if not reward.is_reward_model}

    def benchmarks(self) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        """The figures of each benchmark that is done, by its name, then by task and metric."""
        done = {role: one for role, one in self.manifests.items() if one["stage"] == "benchmark"}
        return {role.removeprefix("benchmark_"): one["metrics"]["figures"] for role, one in done.items()}


@dataclass
class RunView:
    """A run as far as it can be read. `rounds` begins with round 0, the base's evaluation.

    `missing`: what should exist and could not be read; it grows while tables are read.
    """

    root: Path
    recipe: str
    recipe_yaml: str
    rounds: tuple[Round, ...]
    missing: list[str] = field(default_factory=list)

    @property
    def policy(self) -> Path | None:
        """The folder of the last promoted policy, or of the base model; None before round 0 is decided."""
        known = [one.policy for one in self.rounds if one.policy is not None]
        return self.root / known[-1] if known else None

    def artifact(self, of: Round, role: str) -> Path:
        """The artifact folder of a stage of the round: Parquet tables, or a model. Raises KeyError if there is none."""
        return self.root / "artifacts" / of.keys[role]

    def table(self, of: Round, role: str, file: str, read: Callable[[Path], A]) -> A | None:
        """What `read` makes of a table of the round; None where it is not there, and `missing` says if it should be."""
        if role not in of.manifests:
            return None
        path = self.artifact(of, role) / file
        expected = of.manifests[role]["files"].get(file, {}).get("size")
        if not path.is_file() or path.stat().st_size != expected:
            self._lost(of, role, f"{path.relative_to(self.root)} is gone or cut")
            return None
        try:
            return read(path)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are kinds of these
            why = next(iter(str(error).splitlines()), type(error).__name__)
            self._lost(of, role, f"{path.relative_to(self.root)} cannot be read ({why})")
            return None

    def _lost(self, of: Round, role: str, what: str) -> None:
        self.missing.append(f"round {of.number}, {role}: {what}")


def open_run(folder: str | Path, *, partial: bool = False) -> RunView:
    """The run in this folder, as far as it is done; it may be under way. Nothing is locked or written.

    `partial`: damaged manifests are listed in `missing` instead of raised.

    Raises:
        InputError: there is no run here, or nothing of it is done yet.
        DamagedError: run.json or a manifest cannot be read.
    """
    root = Path(folder)
    store = Store(root)
    state = store.read_run()
    if not state:
        if store.work.is_dir():
            raise InputError(
                "no stage of this run is done yet",
                file=str(root),
                hint="ask again when the first one is",
                rule="command-no-stage-yet",
            )
        raise InputError(
            "there is no run here", file=str(root), hint="start one: posttrain round --n 6", rule="command-no-run"
        )
    view = RunView(root, "", "", ())
    try:
        view.recipe = state["recipe"]
        view.rounds = tuple(_round(store, entry, view.missing, partial) for entry in state["rounds"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{root / 'run.json'}: not what a run writes ({error!r} is missing or wrong)") from error
    try:
        view.recipe_yaml = (root / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        view.missing.append("recipe.yaml is gone or cannot be read")
    return view


def _round(store: Store, entry: Mapping[str, Any], missing: list[str], partial: bool) -> Round:
    manifests = {}
    for role, key in entry["stages"].items():
        lost = f"round {entry['round']}, {role}: artifacts/{key} is gone or its artifact.json is damaged"
        if not store.has(key):
            missing.append(lost)
            continue
        try:
            manifest = store.manifest(key)
            if not all(isinstance(manifest[name], dict) for name in ("metrics", "files", "input_keys", "config")):
                raise DamagedError(f"{store.path(key)}: its artifact.json is not a manifest")
        except (DamagedError, KeyError):
            if not partial:
                raise
            missing.append(lost)
        else:
            manifests[role] = manifest
    return Round(entry["round"], entry.get("promoted"), entry.get("policy"), entry["stages"], manifests)
