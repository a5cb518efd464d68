"""Which stages run side by side, in which order, and what happens to the others when one fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.loop_runs import FakeLauncher

from posttrain.errors import StageError
from posttrain.execution.launcher import Ended
from posttrain.execution.progress import Silent
from posttrain.execution.runner import Runner
from posttrain.loop import play
from posttrain.recipe.load import load
from posttrain.storage.store import Store


class Slow(FakeLauncher):
    """Ends stages in the order in which they began, and remembers what ran together."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.together: list[set[str]] = []
        self.folders: list[list[Path]] = []
        self.background: set[str] = set()
        self.failing, self.stopped = fails, False

    def start(self, folder: Path, workers: int, background: bool = False) -> None:
        super().start(folder, workers, background)
        if background:
            self.background.add(folder.name.rpartition("-")[0])
        self.folders.append(list(self.started))
        self.together.append({path.name.rpartition("-")[0] for path in self.started})

    def wait(self) -> Ended:
        folder = self.started.pop(0)
        if folder.name.startswith(self.failing or "nothing"):
            return Ended(folder, StageError("it failed"))
        self.run(folder)
        return Ended(folder)

    def stop(self) -> None:
        self.stopped = True
        super().stop()


def go(root: Path, launcher: Slow, *overrides: str, n: int = 2) -> None:
    recipe = load("quickstart", list(overrides))
    with Store(root).session():
        play(recipe, Runner(Store(root), launcher, Silent(), 1, recipe), n)


def test_what_does_not_depend_on_each_other_runs_together_and_no_more_than_allowed(tmp_path: Path) -> None:
    launcher = Slow()
    go(tmp_path / "run", launcher, "compute.stages_at_once=3")
    # The two policies of preferences and the candidates are sampled at once: nothing is trained yet that they need.
    assert any(sum(path.name.startswith("answers-") for path in running) == 3 for running in launcher.folders)
    assert max(len(running) for running in launcher.together) == 3
    for running in launcher.together:
        assert not {"sft", "pairs"} <= running  # pairs come from the policy that SFT makes
        assert not {"sft", "filters"} <= running


def test_variants_are_trained_side_by_side(tmp_path: Path) -> None:
    """Fails where planning one variant waits for another, say to ask it which micro-batch fitted."""
    launcher = Slow()
    go(tmp_path / "run", launcher, "compute.stages_at_once=3", "dpo.variants=[{}, {seed: 1}]", n=1)
    assert max(sum(path.name.startswith("dpo-") for path in running) for running in launcher.folders) == 2


def test_held_out_prompts_are_answered_aside_while_the_next_round_goes_on(tmp_path: Path) -> None:
    launcher = Slow()
    go(tmp_path / "run", launcher, "compute.stages_at_once=2")
    assert launcher.background == {"answers", "heldout"}
    assert any("heldout" in running and running & {"answers", "sft", "preferences"} for running in launcher.together)


def test_one_at_a_time_is_the_default_of_a_recipe_that_says_nothing(tmp_path: Path) -> None:
    launcher = Slow()
    go(tmp_path / "run", launcher, "compute.stages_at_once=1")
    assert all(len(running) == 1 for running in launcher.together)


def test_side_by_side_or_one_by_one_the_artifacts_are_the_same(tmp_path: Path) -> None:
    for at_once in (1, 3):
        go(tmp_path / str(at_once), Slow(), f"compute.stages_at_once={at_once}")
    one, three = (Store(tmp_path / str(at_once)).read_run()["rounds"] for at_once in (1, 3))
    assert one == three


def test_when_a_stage_fails_the_others_are_stopped_and_the_same_command_goes_on(tmp_path: Path) -> None:
    launcher = Slow(fails="reward_model")
    with pytest.raises(StageError, match="it failed"):
        go(tmp_path / "run", launcher, "compute.stages_at_once=3")
    assert launcher.stopped
    assert launcher.started == []
    again = Slow()
    go(tmp_path / "run", again, "compute.stages_at_once=3")
    assert "preferences" in launcher.ran
    assert again.ran.count("preferences") == 1  # the second round's: what was whole is not done again
    assert "prompts" not in again.ran
    assert Store(tmp_path / "run").read_run()["rounds"][2]["promoted"] is True
