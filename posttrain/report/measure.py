"""What decides the held-out figures of a policy: figures that came about in other ways cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config import RewardEntry
from posttrain.config.keys import name_of
from posttrain.errors import DamagedError
from posttrain.report.reading import Round, RunView


@dataclass(frozen=True)
class Measure:
    """`prompts`: hash of the held-out set, None where it is not known; `sampling`: how answers are sampled, but for
    their number; `rewards`: the functions that say which are right, as they enter keys; `files`: hashes of theirs."""

    prompts: str | None
    sampling: Mapping[str, Any]
    rewards: Sequence[Mapping[str, Any]]
    files: Mapping[str, str]

    @classmethod
    def of(
        cls,
        prompts: str | None,
        settings: Mapping[str, Any],
        rewards: Sequence[Mapping[str, Any]],
        files: Mapping[str, str],
    ) -> Measure:
        """`settings`: of sampling; `files`: hashes by name, of others too. All rewards here score answers, and their
        order is nothing."""
        plain = ({key: value for key, value in one.items() if key != "for"} for one in rewards)
        uses = {name_of(one["use"]) for one in rewards}
        return cls(
            prompts,
            {name: value for name, value in settings.items() if name != "k"},
            sorted(plain, key=json.dumps),
            {name: files[name] for name in sorted(uses & {*files})},
        )

    @classmethod
    def of_run(cls, run: RunView, one: Round | None = None) -> Measure:
        """That of a round; None: of the starting model.

        Raises:
            DamagedError: how its answers were scored cannot be read.
        """
        sets = next((each.manifests["prompts"]["outside"] for each in run.rounds if "prompts" in each.manifests), {})
        made = (one or run.rounds[0]).manifests
        if "heldout" not in made:
            raise DamagedError(f"{run.root}: how held-out answers were scored cannot be read")
        settings = made.get("answers_heldout", {}).get("config", {}).get("answers", {})
        scored = made["heldout"]
        return cls.of(sets.get("heldout"), settings, scored["config"]["rewards"], scored["outside"])

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
