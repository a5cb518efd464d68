"""Inputs of the stages that score answers, evaluations included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.config import RewardEntry
from posttrain.config.keys import Keyed, name_of
from posttrain.data.tables import SAMPLED
from posttrain.execution.artifact import Artifact, StageCall, Stages, present
from posttrain.pipeline.answers import Answers, settings_of, to_evaluate
from posttrain.recipe.recipe import Recipe
from posttrain.seeds import derive_seed

# Temperatures at which the starting model is measured: sharpening alone is no progress.
BASE_TEMPERATURES = [1.0, 0.7, 0.5, 0.3]

Inputs = Mapping[str, Artifact]
# What models are compared on: further inputs of the stage, and its `config`, `runtime` and `external_hashes`.
Comparison = tuple[Inputs, Mapping[str, Any]]
EvaluationSet = Literal["dev", "heldout"]
Compare = Callable[[Mapping[str, Artifact]], Comparison]  # given the candidates by name


@dataclass(frozen=True)
class Evaluated:
    """A policy's scored answers: on dev, which decide whether it is promoted, and on the held-out prompts."""

    dev: Artifact
    heldout: Artifact


class Scoring:
    """Submits stages that score answers. `hashes`: content hash of each reward file, by its `use`."""

    def __init__(self, recipe: Recipe, runner: Stages, hashes: Mapping[str, str], answers: Answers) -> None:
        self.recipe, self.runner, self.hashes, self.answers = recipe, runner, hashes, answers

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
        """Submits a stage that scores answers. Only the rewards that score there are in its key."""
        fields = self.call_fields({**config, **self.computed_in(reward_model)}, rewards, measured)
        return self.runner.submit(
            StageCall(
                name,
                config=fields["config"],
                inputs={**inputs, **present(reward_model=reward_model)},
                seed=seed,
                external_hashes={**fields["external_hashes"], **external_hashes},
                runtime={**fields["runtime"], **runtime},
            )
        )

    def call_fields(
        self, config: Mapping[str, Any], rewards: Sequence[RewardEntry], measured: Sequence[RewardEntry] = ()
    ) -> dict[str, Any]:
        """`config`, `runtime` and `external_hashes` of a stage in which these rewards score answers."""
        uses = [entry.use for entry in [*rewards, *measured] if not entry.is_reward_model]
        return {
            "config": {**config, **in_key("rewards", rewards)},
            "runtime": {**not_in_key("rewards", rewards), "reward_minutes": self.recipe.compute.reward_minutes},
            "external_hashes": self.reward_hashes(uses),
        }

    def computed_in(self, reward_model: Artifact | None) -> dict[str, str]:
        """In what a stage's reward model computes, for its `config`: the type that samples do. Where nothing is said,
        in float32; beside a server too, whose type is its own."""
        dtype = self.recipe.engine.dtype
        return {"scoring_dtype": dtype} if reward_model and dtype not in ("auto", "float32") else {}

    def reward_hashes(self, uses: Sequence[str]) -> dict[str, str]:
        """The hashes of these reward files, by the names that a stage has for them."""
        return {name_of(use): self.hashes[use] for use in uses}

    def candidate_rewards(self, reward_model: Artifact | None) -> tuple[list[RewardEntry], Artifact | None]:
        """The rewards that score candidates: functions, and the reward model if the recipe uses it and there is one."""
        models = [entry for entry in self.recipe.reward if entry.is_reward_model and reward_model]
        return self.recipe.functions() + models, reward_model if models else None

    def evaluate_base(self, prompts: Artifact, base: Artifact) -> Evaluated:
        others = [t for t in BASE_TEMPERATURES if t != self.recipe.evaluate.temperature]
        further = others if self.recipe.functions() else []  # only functions say what is right
        return self.evaluate(prompts, base, None, further)

    def evaluate(
        self, prompts: Artifact, policy: Artifact, reward_model: Artifact | None, further: Sequence[float] = ()
    ) -> Evaluated:
        """On dev, for the gate; on the held-out prompts in the background, as nothing in a run depends on those.
        `further`: more temperatures for the held-out prompts."""
        return Evaluated(
            self.scored_answers("dev", prompts, policy, reward_model),
            self.scored_answers("heldout", prompts, policy, reward_model, further),
        )

    def scored_answers(
        self,
        on: EvaluationSet,
        prompts: Artifact,
        policy: Artifact,
        reward_model: Artifact | None = None,
        further: Sequence[float] = (),
    ) -> Artifact:
        """A policy's scored answers to the prompts of a set."""
        seed = derive_seed(self.same_draws(), SAMPLED)
        settings = settings_of(self.recipe.evaluate)
        answers = self.answers.submit(
            on, prompts, policy, to_evaluate(on), settings, seed=seed, tag=SAMPLED, greedy=True, further=further
        )
        measured = self.recipe.evaluate.measure
        return self.stage(
            {"dev": "evaluate", "heldout": "heldout"}[on],
            in_key("measure", measured),
            {"answers": answers},
            self.recipe.functions(),
            reward_model,
            seed=0,
            measured=measured,
            runtime=not_in_key("measure", measured),
        )

    def on_dev(
        self, role: str, prompts: Artifact, policies: Mapping[str, Artifact], reward_model: Artifact | None
    ) -> Comparison:
        """Policies by name, compared by the scores that the gate compares."""
        dev, settings = to_evaluate("dev"), settings_of(self.recipe.evaluate)
        answers = {
            f"answers_{name}": self.answers.submit(
                f"{role}_{name}", prompts, policy, dev, settings, seed=self.same_draws(), tag=SAMPLED
            )
            for name, policy in policies.items()
        }
        judge = self.gate(reward_model)
        fields = self.call_fields(self.computed_in(judge), self.recipe.functions())
        return {**answers, **present(reward_model=judge)}, fields

    def gate(self, reward_model: Artifact | None) -> Artifact | None:
        """The reward model scores where no function does; else None."""
        return None if self.recipe.functions() else reward_model

    def same_draws(self) -> int:
        """The same seed in every round: policies are compared on the same draws."""
        return derive_seed(self.recipe.seed, "evaluate", 0)


def in_key(name: str, sections: Sequence[Keyed]) -> dict[str, Any]:
    """The fields of these sections that enter the cache key, for a stage's `config`, under this name."""
    return {name: [one.in_key() for one in sections]}


def not_in_key(name: str, sections: Sequence[Keyed]) -> dict[str, Any]:
    """The other fields, for its `runtime`."""
    return {name: [one.not_in_key() for one in sections]}
