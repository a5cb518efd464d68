"""The public Python API: its signatures, its types as pyright sees them, and one use of each function."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, assert_type

import pytest

import posttrain
from posttrain.errors import InputError
from posttrain.recipe.recipe import Recipe
from posttrain.report.reading import RunView

SIGNATURES = {
    "evaluate": ["model", "recipe", "on", "watcher"],
    "load_recipe": ["name_or_path", "overrides", "*files"],
    "open_run": ["folder", "*partial"],
    "run_rounds": ["recipe", "n", "folder", "watcher"],
}

# Without a guard for __main__: the processes of the stages must not import the script.
SCRIPT = """
from posttrain import evaluate, load_recipe, open_run, run_rounds

few = [f"prompts.{name}.rows=:{count}" for name, count in (("train", 24), ("dev", 8), ("heldout", 8))]
without = [f"{name}=null" for name in ("preferences", "reward_model", "pairs", "dpo")]
recipe = load_recipe("quickstart", [*few, *without, "reward=[{use: word-problems.py}]", "samples.k=2", "evaluate.k=1",
    "sft.max_steps=2", "promote=always"])
run = run_rounds(recipe, 1, "mine")
assert open_run("mine") == run and run.policy == run.artifact(run.rounds[1], "sft")
assert evaluate("mine", recipe, on="dev")["greedy"] == run.rounds[1].metrics("evaluate")["dev"]["greedy"]
"""


def test_the_public_functions_take_these_arguments_and_say_what_they_raise() -> None:
    for name in posttrain.__all__:
        taken = inspect.signature(getattr(posttrain, name)).parameters.values()
        shown = [f"{'*' if one.kind is one.KEYWORD_ONLY else ''}{one.name}" for one in taken]
        assert shown == SIGNATURES.pop(name)
        assert "Raises" in str(inspect.getdoc(getattr(posttrain, name)))
    assert not SIGNATURES


def test_no_rounds_are_refused() -> None:
    with pytest.raises(InputError, match=r"0 rounds cannot be run.*\[command-rounds\]"):
        posttrain.run_rounds(posttrain.load_recipe("quickstart"), 0)


def typed() -> None:
    """Nobody calls this: pyright looks whether the lazy names have their types."""
    recipe = assert_type(posttrain.load_recipe("quickstart"), Recipe)
    run = assert_type(posttrain.run_rounds(recipe, 1), RunView)
    assert_type(posttrain.evaluate(run.root, recipe), dict[str, Any])
    assert_type(posttrain.open_run(run.root), RunView)


def test_the_import_is_light_and_a_wrong_name_an_attribute_error() -> None:
    look = "import posttrain, sys; print(*(m for m in sys.modules if m.partition('.')[0] in ('torch', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "\n"
    assert set(posttrain.__all__) <= set(dir(posttrain))
    with pytest.raises(AttributeError, match="no attribute 'run_round'"):
        posttrain.run_round  # type: ignore[attr-defined]  # noqa: B018  # which pyright knows, too


@pytest.mark.slow
def test_a_script_runs_a_round_reads_the_run_and_evaluates_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    # A model answers the held-out prompts of the run beside it; here it is that run's own policy.
    words = [sys.executable, "-m", "posttrain", "compare", "mine", "mine/policy", "--json"]
    both = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    found = json.loads(both.stdout)
    assert found["prompts"] == 8 and {one["difference"]["value"] for one in found["figures"].values()} == {0.0}
    assert found["win_rates"]["rewards"]["ties"] == 1.0
