"""The lineage of a model: its ancestor artifacts, back to what came from outside the run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from posttrain.report.reading import Round

STARTS = ("model", "model_1")  # roles of what a model is trained from, or first of what is averaged


@dataclass(frozen=True)
class Ancestor:
    """An artifact that the model came from. `inputs`: keys by role."""

    key: str
    round: int
    role: str
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class Lineage:
    """`models`: from the final model back, what each was trained from; the last one came from outside.
    `ancestors`: all that had a part in it, in the order of the rounds."""

    models: tuple[str, ...]
    ancestors: tuple[Ancestor, ...]


def final_round(rounds: Sequence[Round]) -> Round | None:
    """The round whose policy is the run's: the last that was promoted. Round 0 is the base's."""
    return next((one for one in reversed(rounds) if one.promoted), None)


def lineage(rounds: Sequence[Round]) -> Lineage | None:
    """Of the run's policy; None, as long as no round is promoted."""
    final = final_round(rounds)
    if final is None or final.policy is None or final.number == 0:
        return None
    made: dict[str, Ancestor] = {}
    for one in reversed(rounds):
        for role, key in one.keys.items():
            manifest = one.manifests.get(role, {})
            made[key] = Ancestor(key, one.number, role, manifest.get("input_keys", {}))
            made.setdefault(manifest.get("same_as", key), made[key])
    open_, seen = [PurePosixPath(final.policy).name], set()
    while open_:
        key = open_.pop()
        if key in made and made[key].key not in seen:
            seen.add(made[key].key)
            open_ += made[key].inputs.values()
    models, at = [], PurePosixPath(final.policy).name
    while (made[at].key if at in made else at) not in models:
        models.append(made[at].key if at in made else at)
        inputs = made[at].inputs if at in made else {}
        at = next((inputs[role] for role in STARTS if role in inputs), at)
    order = {key: place for place, key in enumerate(key for one in rounds for key in one.keys.values())}
    return Lineage(tuple(models), tuple(made[key] for key in sorted(seen, key=order.__getitem__)))
