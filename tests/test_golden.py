"""The key of every artifact of the shipped recipes, against a committed list: a change of the code that changes a key
makes finished stages of users' runs anew. On purpose: `GOLDEN=write pytest tests/test_golden.py`, and a line in the
changelog. For a trained result bit by bit: benchmarks/same_bits.py.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.execution.artifact import Artifact, StageCall
from posttrain.loop import play
from posttrain.recipe.load import load
from posttrain.stages.registry import STAGES
from posttrain.storage import store

GOLDEN = Path(__file__).with_name("golden_keys.json")
# What is on the Hub, put in its place from what is shipped: keys are made of contents, and nothing is fetched.
HERE = [
    "model.path=tiny-base",
    "prompts.train={path: word-problems.train.jsonl}",
    "prompts.dev={path: word-problems.dev.jsonl}",
    "prompts.heldout={path: word-problems.heldout.jsonl}",
]
RECIPES = {
    "quickstart": [],
    "llama3": HERE,
    "gsm8k": HERE,
    "ultrafeedback": [*HERE, "preferences.given={path: edited-notes.jsonl}"],
    "consumer-gpu": HERE,
    "8b-one-gpu": HERE,
    "instructions": HERE,
    "reasoning": [],
}


class Keys:
    """Notes the key of each stage that the loop asks for. Every gate lets the new policy through."""

    def __init__(self) -> None:
        self.made: list[list[Any]] = []
        self._number = 0

    def begin_round(self, number: int) -> None:
        self._number = number

    def submit(self, call: StageCall) -> Artifact:
        read = {part: artifact.key for part, artifact in call.inputs.items()}
        config = {**call.config, "seed": call.seed}
        key = store.artifact_key(call.stage, STAGES[call.stage].version, config, read, call.external_hashes)
        self.made.append([self._number, call.name, key])
        return Artifact(key, Path(key))

    def metrics(self, artifact: Artifact) -> dict[str, Any]:
        return {"promoted": True, "ci95": [1.0, 1.0]}

    def end_round(self, promoted: bool, policy: Artifact) -> None: ...
    def end(self) -> None: ...
    def stop(self) -> None: ...


@pytest.mark.parametrize("name", RECIPES)
def test_no_artifact_of_a_shipped_recipe_has_another_key(name: str):
    keys = Keys()
    play(load(name, RECIPES[name]), keys, 2)
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GOLDEN") == "write":
        known[name] = keys.made
        written = json.dumps(known, indent=1, sort_keys=True)
        GOLDEN.write_text(re.sub(r"\[\s+(\d+),\s+(\S+),\s+(\S+)\s+\]", r"[\1, \2, \3]", written) + "\n")
    assert keys.made == known[name]


def test_every_shipped_recipe_is_walked():
    from posttrain import shipped

    assert sorted(RECIPES) == shipped.names("recipes")
