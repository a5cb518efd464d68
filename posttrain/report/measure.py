"""What decides the held-out figures of a policy: figures that came about in other ways cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config import RewardEntry
from posttrain.config.keys import name_of
from posttrain.pipeline.answers import settings_of
from posttrain.pipeline.externals import ExternalInputs
from posttrain.recipe.recipe import Recipe
from posttrain.report.reading import Round, RunView


@dataclass(frozen=True)
class Measure:
    """`prompts`: hash of the held-out set; `sampling`: how answers are sampled, but for their number; `rewards`: the
    functions that say which are right, as they enter keys; `files`: hashes of their files."""

    prompts: str | None
    sampling: Mapping[str, Any]
    rewards: Sequence[Mapping[str, Any]]
    files: Mapping[str, str]

    @classmethod
    def of_run(cls, run: RunView, one: Round | None = None) -> Measure:
        """That of a round; None: of the starting model."""
        sets = next((each.manifests["prompts"]["outside"] for each in run.rounds if "prompts" in each.manifests), {})
        made = (one or run.rounds[0]).manifests
        scored, answered = made.get("heldout", {}), made.get("answers_heldout", {})
        rewards = scored.get("config", {}).get("rewards", [])
        uses, outside = {name_of(reward["use"]) for reward in rewards}, scored.get("outside", {})
        return cls(
            sets.get("heldout"),
            _but_their_number(answered.get("config", {}).get("answers", {})),
            rewards,
            {name: outside[name] for name in uses & {*outside}},
        )

    @classmethod
    def of_recipe(cls, recipe: Recipe, external: ExternalInputs) -> Measure:
        functions = recipe.functions()
        return cls(
            external.evaluated["heldout"],
            _but_their_number(settings_of(recipe.evaluate)),
            [one.in_key() for one in functions],
            {name_of(one.use): external.rewards[one.use] for one in functions},
        )

    def names(self) -> str:
        """The reward functions, in words."""
        made = (RewardEntry.model_construct(use=one["use"], function=one["function"]) for one in self.rewards)
        return ", ".join(one.name for one in made) or "no function"

    def scored_otherwise(self, other: Measure) -> str | None:
        """In words, by what the two score answers, if not by the same."""
        if (self.rewards, self.files) == (other.rewards, other.files):
            return None
        if self.names() != other.names():
            return f"by {self.names()} and by {other.names()}"
        return f"by other versions or weights of {self.names()}"

    def sampled_otherwise(self, other: Measure) -> str | None:
        """In words, how the two sample answers, if not in one way."""
        return None if self.sampling == other.sampling else f"with {self.sampling} and with {other.sampling}"


def _but_their_number(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "k"}
