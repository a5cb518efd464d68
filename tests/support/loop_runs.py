"""The loop with fake stages, which take no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from posttrain.errors import PosttrainError
from posttrain.execution.launcher import Ended
from posttrain.execution.progress import Silent
from posttrain.execution.runner import Runner
from posttrain.loop import play
from posttrain.recipe.load import load
from posttrain.storage import store
from posttrain.storage.files import read_json
from posttrain.storage.store import Store

FIGURES = {"value": 0.5, "ci95": [0.4, 0.6], "n": 10}

F = {"greedy": FIGURES, "pass@1": FIGURES, "pass@8": FIGURES, "reward": FIGURES, "mean_length": 20.0}

WATCHED = ("proxy_reward", "heldout_reward", "length", "accuracy")

METRICS = {  # of stages that report any
    "trial": {"trainings": 3},
    "preferences": {"pairs": 5, "prompts": 10, "labels": {}},
    "reward_model": {"pairs": 5, "pair_accuracy": FIGURES},
    "difficulty": {"pool": 20, "taken": 10},
    "answers": {"prompts": 10, "completions": 80},
    "annotate": {"prompts": 10},
    "quality_classifier": {"rows": 9, "auc": FIGURES, "on": False},
    "filters": {"kept": 7, "dropped": {"format: empty": 73}},
    "diversity": {"figures": {}, "first": None, "warnings": ["the answers are all alike"]},
    "average": {"models": 2},
    "choose": {"chosen": "mean", "pairs": 4, "pair_accuracy": FIGURES},
    "pairs": {"pairs": 4},
    "dpo": {"pairs": 4},
    "kto": {"rows": 60},
    "evaluate": {"dev": F},
    "heldout": {"heldout": F},
    "promote": {"promoted": True},
    "watch": {
        "figures": {side: dict.fromkeys(WATCHED, FIGURES) for side in ("policy", "previous", "base")},
        "changes": {side: dict.fromkeys(WATCHED, FIGURES) for side in ("previous", "base")},
        "win_rates": {
            side: {"held-out-reward-model": {"raw": FIGURES, "length_controlled": FIGURES, "ties": 0.1}}
            for side in ("previous", "base")
        },
        "warnings": ["the proxy reward rose"],
        "judges": {},
    },
}


class FakeLauncher:
    """Publishes each stage at once with made-up metrics. `fails(stage)` may raise instead."""

    here = True

    def __init__(
        self,
        promoted: bool = True,
        fails: Callable[[str], None] = lambda stage: None,
        better: bool | None = None,  # what the gate's test shows; None: as `promoted`
    ) -> None:
        self.ran: list[str] = []
        self.promoted, self.fails = promoted, fails
        self.better = promoted if better is None else better

        self.started: list[Path] = []

    def start(self, folder: Path, workers: int, background: bool = False) -> None:
        self.started.append(folder)

    def wait(self) -> Ended:
        folder = self.started.pop(0)
        try:
            self.run(folder)
        except PosttrainError as error:
            return Ended(folder, error)
        return Ended(folder)

    def stop(self) -> None:
        self.started.clear()

    def run(self, folder: Path) -> None:
        stage = read_json(folder / "stage.json")
        self.fails(stage["stage"])
        if stage["stage"] not in ("hardware", "trial"):  # which have tests of their own
            self.ran.append(stage["role"] if stage["stage"] == "answers" else stage["stage"])
        metrics = METRICS.get(stage["stage"], {})
        if stage["stage"] == "promote":
            metrics = {"promoted": self.promoted, "ci95": [0.01, 0.03] if self.better else [-0.02, 0.01]}
        for path in stage["inputs"].values():
            assert (folder.parent.parent / path).is_dir()
        (folder / "out" / "payload").write_text(stage["key"])
        described = {name: stage[name] for name in ("stage", "key", "input_keys", "outside", "config")}
        manifest = {**described, "seconds": 1.0, "metrics": metrics}
        store.publish(folder, folder.parent.parent / "artifacts", manifest)


class Reasons(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def runs_again(self, reason: str) -> None:
        self.said.append(reason)


def go(
    root: Path,
    n: int,
    *overrides: str,
    launcher: FakeLauncher | None = None,
    after_round: Sequence[Callable[[int, bool], None]] = (),
) -> tuple[list[str], list[str]]:
    """Stages that ran, and what was said about running again."""
    launcher, reasons = launcher or FakeLauncher(), Reasons()
    recipe = load("quickstart", ["dpo.learning_rate=1e-4", "compute.stages_at_once=1", *overrides])
    run = Store(root)
    with run.session():
        play(recipe, Runner(run, launcher, reasons, 1, recipe, after_round), n)
    return launcher.ran, reasons.said


EVALUATED = ["answers_dev", "evaluate", "answers_heldout", "heldout"]

ROUND = [
    "answers_preferences",
    "answers_preferences_previous",
    "preferences",
    "reward_model",
    "answers_samples",
    "scores",
    "filters",
    "sft",
    "answers_pairs",
    "pairs",
    "dpo",
    *EVALUATED,
    "promote",
]

# What a round does anew after one whose policy came out otherwise: the policy before that one has answered already.
AGAIN = [stage for stage in ROUND if stage != "answers_preferences_previous"]
