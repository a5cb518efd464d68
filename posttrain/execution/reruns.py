"""Why a stage runs again, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from posttrain.errors import DamagedError
from posttrain.stages.registry import STAGES, spec
from posttrain.storage.store import Store, artifact_key


def old_key(old: Sequence[Mapping[str, Any]], number: int, name: str) -> str | None:
    """The key of a stage in `old`, the rounds of run.json before this command; None if it is not there."""
    return next((entry["stages"].get(name) for entry in old if entry["round"] == number), None)


def why(
    old: Mapping[str, Any],
    config: Mapping[str, Any],
    input_keys: Mapping[str, str],
    external_hashes: Mapping[str, str],
    made_here: Collection[str],
) -> list[str]:
    """Differences from the manifest of the old artifact, one line each. Inputs made anew in this run (`made_here`) are
    left out: the stages that made them are reported themselves."""
    reasons = differences(old["config"], config)
    reasons += changed_roles(old["outside"], external_hashes, "the content of {} changed")
    from_outside = {role: key for role, key in input_keys.items() if key not in made_here}
    old_inputs = old["input_keys"]
    still = {role: old_inputs[role] for role in old_inputs if role in from_outside or role not in input_keys}
    reasons += changed_roles(still, from_outside, "another {}")
    return reasons + [f"{role} is new" for role in input_keys if role not in old_inputs and role not in from_outside]


def following(store: Store, old: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, str]]:
    """Round and name of the stages of `old` that were made from the artifact `key`, directly or not."""
    stale, found = {key, store.canonical(key)}, []
    for entry in old:
        for name, made in entry["stages"].items():
            if store.has(made) and stale & set(store.manifest(made)["input_keys"].values()):
                stale |= {made, store.canonical(made)}
                found.append((entry["round"], name))
    return found


def older(store: Store, old: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, str]]:
    """Round and name, by key, of the stages of `old` that another version of the program made, and of those made from
    them. The stage's version is part of the key."""
    found: dict[str, tuple[int, str]] = {}
    stale: set[str] = set()
    for entry in old:
        for name, key in entry["stages"].items():
            try:
                made = store.manifest(key)
            except DamagedError:  # or set aside: whoever needs it says so
                continue
            if spec(made["stage"], name).check_only:
                continue
            if not _current(key, made) or stale & set(made["input_keys"].values()):
                found.setdefault(key, (entry["round"], name))
                stale |= {key, store.canonical(key)}
    return found


def _current(key: str, made: Mapping[str, Any]) -> bool:
    """Whether this version of the program gives the same config and inputs the same key."""
    known = STAGES.get(made["stage"])
    inputs = (made["config"], made["input_keys"], made["outside"])
    return known is not None and artifact_key(known.name, known.version, *inputs) == key


def older_layout(found: Mapping[str, tuple[int, str]]) -> str:
    """The message about what `older` found."""
    by_round: dict[int, list[str]] = {}
    for number, name in found.values():
        by_round.setdefault(number, []).append(name)
    stages = "; ".join(f"{', '.join(names)} of round {number}" for number, names in by_round.items())
    return (
        f"this run is of an older layout, made by another version of posttrain; start anew: {stages}. Nothing is "
        "deleted: the old artifacts stay, and their version finds them again"
    )


def changed_roles(old: Mapping[str, str], new: Mapping[str, str], changed: str) -> list[str]:
    """One line for each name whose value changed, was added or was removed."""
    lines = [changed.format(role) for role in new if role in old and old[role] != new[role]]
    lines += [f"{role} is new" for role in new if role not in old]
    return lines + [f"{role} is left out" for role in old if role not in new]


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The differences between two JSON values, one line each: `dpo.learning_rate 0.0001 → 0.0002`."""
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
