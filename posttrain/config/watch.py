"""The section of the watch: a second reward model that nothing is chosen by, and who compares answers by round."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from posttrain.config.keys import KeyedByName
from posttrain.config.rewards import RewardEntry
from posttrain.config.section import Section, Share, complain
from posttrain.config.training import RewardModel

SECOND = "held-out-reward-model"
# Rounds are compared by it, so it is made in the same way in each.
_FIXED: dict[str, Any] = {"start": "base", "preferences": "all", "variants": []}


class Judge(Section):
    """What compares two answers: the second reward model, or a function in a file."""

    use: Annotated[str, KeyedByName()]
    """`held-out-reward-model`, a shipped reward file, or a path with a slash."""
    function: str | None = None
    """Which function of the file; null: the only public one."""

    @property
    def is_model(self) -> bool:
        return self.use == SECOND

    @property
    def entry(self) -> RewardEntry:
        """The same as an entry of `reward`, whose files these are."""
        return RewardEntry(use=self.use, function=self.function)

    @property
    def name(self) -> str:
        return self.entry.name


class Watch(Section):
    """Monitors reward over-optimisation on each round's held-out answers; nothing is selected by it."""

    reward_model: RewardModel = Field(default_factory=RewardModel)
    """The second reward model, trained from the base on its pairs of all rounds. Default: as `reward_model`, key by
    key."""
    share: Share = 0.3
    """Share of the preference prompts whose pairs train only the second reward model."""
    judges: list[Judge] | None = Field(default=None, min_length=1)
    """What compares answers for the win rates: `held-out-reward-model`, reward functions, or functions
    `judge(prompts, first, second, **columns)`. Null: the second reward model, and the functions that score
    candidates."""

    @model_validator(mode="after")
    def _made_alike_in_every_round(self) -> Watch:
        for key, value in _FIXED.items():
            if getattr(self.reward_model, key) != value:
                complain(
                    ("reward_model", key),
                    f"rounds are compared by the second reward model: its {key!r} is {value!r}",
                    "leave the key out",
                    rule="recipe-refused-key",
                )
        return self


def as_the_first(given: dict[str, Any]) -> dict[str, Any]:
    """A recipe as given, with what `watch.reward_model` does not say taken from `reward_model`."""
    first, watch = given.get("reward_model"), given.get("watch")
    if not isinstance(first, dict) or not isinstance(watch, dict):
        return given
    own = watch.get("reward_model", {})
    if not isinstance(own, dict):
        return given
    shared = {key: value for key, value in first.items() if key not in _FIXED}
    return {**given, "watch": {**watch, "reward_model": {**shared, **own}}}
