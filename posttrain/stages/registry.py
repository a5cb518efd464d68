"""The registry: every stage of a round, with what the rest of the program must know about it. Imports nothing heavy.

A new stage is one entry here, one module of its name beside this file, and a line in the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Group = Literal["data", "sampling and scoring", "training", "evaluation", "watch"]


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    `version` is raised when the same inputs would give another result. `group`: the report's group for its time.
    `unit` of its work: completions sampled, optimizer steps, tokens that a policy reads or gives, or rows.
    `background`: no other stage waits for it soon. `makes_model`: its artifact is a model folder. `like`: the stage
    whose measured cost is used if this one's was not measured. `check_only`: it only raises errors, and no stage
    reads it. `runs`: for a role with its own entry, the stage that it is. `label`: the display name of stages that
    make a policy. `reference_reads`: for a stage with a reference policy, how often the reference reads each row.
    `on_device`: it finds out about the device that it runs on, and so on a cluster it runs where trainings do.
    """

    name: str
    version: int
    group: Group
    unit: Literal["rows", "completions", "steps", "tokens"] = "rows"
    background: bool = False
    makes_model: bool = False
    like: str = ""
    check_only: bool = False
    runs: str = ""
    label: str = ""
    reference_reads: int = 0
    on_device: bool = False

    @property
    def trained(self) -> bool:
        """Whether it takes optimizer steps."""
        return self.unit == "steps"

    @property
    def samples(self) -> bool:
        """Whether it samples completions from a model."""
        return self.unit == "completions"


_ALL = (
    StageSpec("hardware", 1, "data", on_device=True),
    StageSpec("prompts", 2, "data"),
    StageSpec("trial", 1, "training", check_only=True, on_device=True),
    StageSpec("answers", 1, "sampling and scoring", "completions"),
    StageSpec("answers_dev", 1, "evaluation", "completions", runs="answers"),
    StageSpec("answers_heldout", 1, "evaluation", "completions", background=True, runs="answers"),
    StageSpec("preferences", 8, "sampling and scoring"),
    StageSpec("reward_model", 3, "training", "steps", makes_model=True, label="a reward model"),
    StageSpec("difficulty", 5, "sampling and scoring", like="scores"),
    StageSpec("annotate", 2, "data"),
    StageSpec("step_labels", 1, "sampling and scoring", "tokens", like="answers"),
    StageSpec("step_reward", 1, "training", "steps", makes_model=True, like="sft", label="a step reward model"),
    StageSpec("step_scores", 1, "sampling and scoring", "tokens", like="answers"),
    StageSpec("scores", 5, "sampling and scoring"),
    StageSpec("search", 1, "sampling and scoring", "tokens", like="answers", label="a search"),
    StageSpec("correction", 1, "sampling and scoring", "tokens", like="answers", label="corrections"),
    StageSpec("quality_classifier", 1, "data"),
    StageSpec("filters", 1, "data", label="rejection sampling with filters"),
    StageSpec("diversity", 1, "data", background=True),
    StageSpec("average", 1, "training", makes_model=True),
    StageSpec("choose", 5, "training", makes_model=True, like="evaluate"),
    StageSpec("sft", 3, "training", "steps", makes_model=True, label="SFT"),
    StageSpec("online", 1, "training", "steps", makes_model=True, label="on-policy training"),
    StageSpec("pairs", 7, "sampling and scoring"),
    StageSpec("dpo", 5, "training", "steps", makes_model=True, label="DPO", reference_reads=1),
    StageSpec("kto", 2, "training", "steps", makes_model=True, like="dpo", label="KTO", reference_reads=2),
    StageSpec("evaluate", 7, "evaluation"),
    StageSpec("heldout", 6, "evaluation", background=True, like="evaluate"),
    StageSpec("benchmark", 1, "evaluation", "tokens", background=True, like="answers"),
    StageSpec("contamination", 1, "evaluation", background=True),
    StageSpec("memorisation", 1, "evaluation", "tokens", background=True, like="answers"),
    StageSpec("label_variants", 1, "evaluation", "tokens", background=True, like="answers"),
    StageSpec("forecast", 1, "evaluation", "tokens", background=True, like="answers"),
    StageSpec("label_variants_check", 1, "evaluation", check_only=True),
    StageSpec("benchmark_check", 1, "evaluation", check_only=True),
    StageSpec("promote", 1, "evaluation"),
    StageSpec("watch", 6, "watch", background=True, like="scores"),
    StageSpec("watch_model", 3, "watch", "steps", background=True, makes_model=True, runs="reward_model"),
)
_BY_NAME = {one.name: one for one in _ALL}
STAGES = {one.name: one for one in _ALL if not one.runs}
REFERENCED = [name for name, one in STAGES.items() if one.reference_reads]  # trained against a reference policy


def spec(stage: str, role: str = "") -> StageSpec:
    """The spec for a stage in this role of a round: the role's own entry if it has one, else the stage's.

    A run of an older layout may have stages that no longer exist: those count as data.
    """
    return _BY_NAME.get(role) or STAGES.get(stage) or StageSpec(stage, 0, "data")


def learned_from(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """The number of pairs or single answers that each stage with a reference policy was trained on, by stage name.
    `metrics`: those of a round's stages, by name."""
    there = [name for name in REFERENCED if name in metrics]
    return {name: metrics[name].get("pairs", metrics[name].get("rows", 0)) for name in there}
