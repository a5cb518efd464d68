"""Why a stage runs again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


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
