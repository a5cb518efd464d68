"""The stages in which rewards judge answers: what these are told, of rewards, engine and server. Evaluations too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config import RewardEntry
from posttrain.config.keys import Keyed, name_of
from posttrain.execution.artifact import Artifact, StageCall, Stages
from posttrain.recipe.recipe import Recipe
from posttrain.seeds import derive_seed

# Temperatures at which the starting model is measured: sharpening alone is no progress.
BASE_TEMPERATURES = [1.0, 0.7, 0.5, 0.3]

Inputs = Mapping[str, Artifact]
# What models are compared on: further inputs of the stage, and its `config`, `runtime` and `external_hashes`.
Comparison = tuple[Inputs, Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluated:
    """A policy's judged answers: on dev, by which it is promoted or not, and on the held-out prompts."""

    dev: Artifact
    heldout: Artifact


class Judging:
    """`hashes`: of the reward files, by their `use`."""

    def __init__(self, recipe: Recipe, runner: Stages, hashes: Mapping[str, str]) -> None:
        self.recipe, self.runner, self.hashes = recipe, runner, hashes

    def stage(
        self,
        name: str,
        config: Mapping[str, Any],
        inputs: Inputs,
        rewards: Sequence[RewardEntry],
        reward_model: Artifact | None = None,
        *,
        seed: int,
        measured: Sequence[RewardEntry] = (),
        external_hashes: Mapping[str, str] = {},
        runtime: Mapping[str, Any] = {},
    ) -> Artifact:
        """A stage in which rewards judge answers. Only those that do are in its key."""
        told = self.told(config, rewards, measured)
        return self.runner.submit(
            StageCall(
                name,
                config=told["config"],
                inputs={**inputs, **_judge(reward_model)},
                seed=seed,
                external_hashes={**told["external_hashes"], **external_hashes},
                runtime={**told["runtime"], **runtime},
            )
        )

    def told(
        self, config: Mapping[str, Any], rewards: Sequence[RewardEntry], measured: Sequence[RewardEntry] = ()
    ) -> dict[str, Any]:
        """`config`, `runtime` and `external_hashes` of a stage in which these judge answers."""
        uses = [entry.use for entry in [*rewards, *measured] if not entry.is_reward_model]
        return {
            "config": {**config, **in_key("rewards", rewards), "engine": self.engine()},
            "runtime": {
                **not_in_key("rewards", rewards),
                "reward_minutes": self.recipe.compute.reward_minutes,
                **self.server(),
            },
            "external_hashes": self.named(uses),
        }

    def named(self, uses: Sequence[str]) -> dict[str, str]:
        """The hashes of these reward files, by the name that a stage knows them by."""
        return {name_of(use): self.hashes[use] for use in uses}

    def scoring(self, reward_model: Artifact | None) -> tuple[list[RewardEntry], Artifact | None]:
        """What candidates are scored by: functions, and the reward model where the recipe uses it and there is one."""
        models = [entry for entry in self.recipe.reward if entry.is_reward_model and reward_model]
        return self.recipe.functions() + models, reward_model if models else None

    def evaluate_base(self, prompts: Artifact, base: Artifact) -> Evaluated:
        further = [t for t in BASE_TEMPERATURES if t != self.recipe.evaluate.temperature]
        return self.evaluate(prompts, base, None, {"temperatures": further})

    def evaluate(
        self, prompts: Artifact, policy: Artifact, reward_model: Artifact | None, further: Mapping[str, Any] = {}
    ) -> Evaluated:
        """On dev, for the gate. Held-out prompts are answered in the background: nothing in a run depends on how."""
        dev, heldout = (
            self.answers(stage, prompts, policy, reward_model, further) for stage in ("evaluate", "heldout")
        )
        return Evaluated(dev, heldout)

    def answers(
        self,
        stage: str,
        prompts: Artifact,
        policy: Artifact,
        reward_model: Artifact | None = None,
        further: Mapping[str, Any] = {},
    ) -> Artifact:
        """A policy's judged answers, by the stage `evaluate` (on dev) or `heldout`."""
        section = self.recipe.evaluate
        return self.stage(
            stage,
            {"evaluate": section.in_key(), **further},
            {"prompts": prompts, "policy": policy},
            self.recipe.functions(),
            reward_model,
            seed=self.same_draws(),
            measured=section.measure,
            runtime={"evaluate": section.not_in_key()},
        )

    def on_dev(self, prompts: Artifact, reward_model: Artifact | None) -> Comparison:
        """Policies are compared by what the gate judges by."""
        section = self.recipe.evaluate.in_key(exclude=("measure",))
        inputs = {"prompts": prompts, **_judge(self.gate(reward_model))}
        return inputs, self.told({"evaluate": section}, self.recipe.functions())

    def gate(self, reward_model: Artifact | None) -> Artifact | None:
        """The reward model decides where no function does."""
        return None if self.recipe.functions() else reward_model

    def same_draws(self) -> int:
        """The same seed in every round: policies are compared on the same draws."""
        return derive_seed(self.recipe.seed, "evaluate", 0)

    def engine(self) -> dict[str, Any]:
        """What of it decides the result: not where a server is, or how it is started."""
        engine = self.recipe.engine
        made = engine.model_dump(mode="json", exclude={"server"})
        return {**made, "server": engine.server.kind} if engine.server else made

    def server(self) -> dict[str, Any]:
        server = self.recipe.engine.server
        return {"server": server.model_dump(mode="json")} if server else {}


def _judge(reward_model: Artifact | None) -> dict[str, Artifact]:
    return {"reward_model": reward_model} if reward_model else {}


def in_key(name: str, sections: Sequence[Keyed]) -> dict[str, Any]:
    """What of a list of sections a stage's `config` holds under this name."""
    return {name: [one.in_key() for one in sections]}


def not_in_key(name: str, sections: Sequence[Keyed]) -> dict[str, Any]:
    """What of it its `runtime` holds."""
    return {name: [one.not_in_key() for one in sections]}
