"""The Llama 3 recipe: where each value is from; and every mechanism on, for two rounds of the quickstart's prompts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain import shipped
from posttrain.recipe.load import load
from posttrain.storage import store
from posttrain.storage.files import read_json

REWARD = "reward=[{use: word-problems.py}, {use: readers.py, for: preferences}, {use: reward-model, weight: 0.2}]"


def prompts(name: str, rows: str) -> list[str]:
    return [
        f"prompts.{name}.path=word-problems.{name}.jsonl",
        f"prompts.{name}.rows={rows}",
        f"prompts.{name}.columns={{prompt: prompt}}",
    ]


def test_every_value_says_where_it_is_from() -> None:
    """By a comment on its line, or on that of the key above it: a section of the paper, or "ours"."""
    text = shipped.recipe_path("llama3").read_text("utf-8")
    above: list[tuple[int, bool]] = []  # indentation of the keys that a line is below, and whether they say it
    said = 0
    for line in text.splitlines():
        setting = line.partition("#")[0].rstrip()
        if not setting or setting.startswith("extends:"):
            continue
        indent = len(line) - len(line.lstrip())
        above = [(each, says) for each, says in above if each < indent]
        says = re.search(r"#.*(\bours\b|\b4\.[1-3]\.\d)", line) is not None
        assert says or setting.endswith(":") or any(each for _, each in above), f"where is this from? {line}"
        above.append((indent, says))
        said += says
    assert said > 30


def test_it_has_the_papers_values() -> None:
    recipe = load("llama3")
    assert recipe.reward_model and recipe.sft and recipe.dpo and recipe.preferences
    assert (recipe.reward_model.start, recipe.reward_model.preferences) == ("base", "all")
    assert (recipe.reward_model.packed, recipe.reward_model.margin) == (True, "none")
    assert 10 <= recipe.samples.k <= 30
    assert recipe.sft.start == "base" and recipe.sft.trl["learning_rate"] == 1e-5
    assert (recipe.dpo.trl["learning_rate"], recipe.dpo.trl["beta"], recipe.dpo.nll_weight) == (1e-5, 0.1, 0.2)
    assert recipe.dpo.mask_format and recipe.dpo.preferences == "latest"
    assert recipe.dpo.pairs_from == ["preferences"]
    assert recipe.preferences.keep == ["significantly_better", "better"]


@pytest.mark.slow
def test_two_rounds_with_every_mechanism_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [
        "model.path=tiny-base",
        REWARD,
        *prompts("train", ":600"),
        *prompts("dev", ":40"),
        *prompts("heldout", ":20"),
        "preferences.prompts=120",
        "samples.prompts=60",
        "samples.k=4",
        "samples.max_new_tokens=48",
        "samples.system=[null, Be brief.]",
        "sft.anneal.from_round=2",
        "evaluate.k=2",
        "promote=always",
    ]
    command = [sys.executable, "-m", "posttrain", "round", "llama3", "--n", "2", "--run", str(run)]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for role in ("reward-model", "sft", "dpo"):
        chosen = read_json(run / "round-2" / role / "artifact.json")
        assert (chosen["stage"], chosen["metrics"]["averaged"]) == ("choose", 2)
        assert chosen["metrics"]["chosen"] in ("mean", "model_1", "model_2")
        assert store.damaged_files((run / "round-2" / role).resolve()) == []
    learned = read_json(run / "round-2" / "sft-variant-1" / "artifact.json")
    assert {"kept", "earlier_001"} <= set(learned["input_keys"])
    assert learned["metrics"]["sources"]["earlier"] > 0
    judged = read_json(run / "round-2" / "reward-model-variant-1" / "artifact.json")
    assert {"preferences_1", "preferences_2"} <= set(judged["input_keys"])
    paired = read_json(run / "round-2" / "dpo-variant-1" / "artifact.json")
    assert {role for role in paired["input_keys"] if role.startswith("preferences")} == {"preferences_2"}
