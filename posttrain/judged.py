"""The stages in which rewards judge answers: what these are told, of rewards, engine and server. Evaluations too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.recipe import JudgeModel, Recipe, RewardEntry
from posttrain.runner import Artifact, Stages
from posttrain.schedule import derive_seed

# Temperatures at which the starting model is measured: sharpening alone is no progress.
BASE_TEMPERATURES = [1.0, 0.7, 0.5, 0.3]

Inputs = Mapping[str, Artifact]
# What models are compared on: further inputs of the stage, and its `config`, `decides`, `outside` and `settings`.
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
        outside: Mapping[str, str] = {},
        settings: Mapping[str, Any] = {},
        aside: bool = False,
    ) -> Artifact:
        """A stage in which rewards judge answers. Only those that do are in its key."""
        told = self.told(config, rewards, measured)
        return self.runner.stage(
            name,
            config=told["config"],
            decides=told["decides"],
            inputs={**inputs, **_judge(reward_model)},
            outside={**told["outside"], **outside},
            settings={**told["settings"], **settings},
            seed=seed,
            aside=aside,
        )

    def told(
        self, config: Mapping[str, Any], rewards: Sequence[RewardEntry], measured: Sequence[RewardEntry] = ()
    ) -> dict[str, Any]:
        """`config`, `decides`, `outside` and `settings` of a stage in which these judge answers."""
        uses = [entry.use for entry in [*rewards, *measured] if not entry.is_reward_model]
        given = {**config, "rewards": entries(rewards), "engine": self.engine()}
        return {
            "config": given,
            "decides": deciding(given),
            "outside": self.named(uses),
            "settings": {
                "reward_files": {name_of(use): use for use in uses},
                "reward_minutes": self.recipe.compute.reward_minutes,
                **self.server(),
            },
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
        """On dev, for the gate. Held-out prompts are answered aside: nothing in a run depends on how."""
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
        section = self.recipe.evaluate.model_dump(mode="json", by_alias=True)
        section["measure"] = entries(self.recipe.evaluate.measure)
        return self.stage(
            stage,
            {"evaluate": section, **further},
            {"prompts": prompts, "policy": policy},
            self.recipe.functions(),
            reward_model,
            seed=self.same_draws(),
            measured=self.recipe.evaluate.measure,
            aside=stage == "heldout",
        )

    def on_dev(self, prompts: Artifact, reward_model: Artifact | None) -> Comparison:
        """Policies are compared by what the gate judges by."""
        section = self.recipe.evaluate.model_dump(mode="json", by_alias=True, exclude={"measure"})
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


def name_of(use: str) -> str:
    """A reward's name without its folder: where a file lies decides nothing."""
    return use.rpartition("/")[2]


def entries(given: Sequence[RewardEntry]) -> list[dict[str, Any]]:
    """Rewards as a stage's config has them."""
    return [
        {
            **entry.model_dump(mode="json", by_alias=True, exclude=set() if entry.judge else {"judge"}),
            "use": name_of(entry.use),
        }
        for entry in given
    ]


def deciding(config: Any) -> Any:
    """A stage's config without what only says where a judge or a rubric is, and how patiently it is asked."""
    if isinstance(config, Mapping):
        return {name: _decides(name, value) for name, value in config.items()}
    return [deciding(one) for one in config] if isinstance(config, list) else config


def _decides(name: str, value: Any) -> Any:
    if name == "judge" and value:
        return JudgeModel.model_validate(value).key()
    return name_of(value) if name == "rubric" else deciding(value)
