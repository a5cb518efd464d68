"""Inputs of the stage `answers` in each of its roles: policy, prompts, K, sampling parameters, engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config import Evaluate, Pairs, Preferences, Samples
from posttrain.execution.artifact import Artifact, StageCall, Stages
from posttrain.recipe.recipe import Recipe

Settings = Mapping[str, Any]


class Answers:
    def __init__(self, recipe: Recipe, runner: Stages) -> None:
        self.recipe, self.runner = recipe, runner

    def to_train(
        self,
        role: str,
        prompts: Artifact,
        policy: Artifact,
        settings: Settings,
        *,
        seed: int,
        take: Mapping[str, Any],
        where: Mapping[str, Any] = {},
        tag: str = "",
        system: str | None = None,
        difficulty: Artifact | None = None,
    ) -> Artifact:
        """Answers to training prompts: those that `difficulty` selected, else `take` of those that match `where`."""
        return self._submit(
            role,
            {"prompts": prompts, "policy": policy, **({"difficulty": difficulty} if difficulty else {})},
            {"set": "train", "take": take, "where": where},
            settings,
            seed=seed,
            tag=tag,
            system=system,
        )

    def to_evaluate(
        self,
        role: str,
        on: str,
        prompts: Artifact,
        policy: Artifact,
        *,
        seed: int,
        tag: str,
        greedy: bool = False,
        further: Sequence[float] = (),
    ) -> Artifact:
        """Answers to all prompts of the set `on`. `further`: more temperatures, with K // 2 samples each."""
        settings = settings_of(self.recipe.evaluate)
        inputs = {"prompts": prompts, "policy": policy}
        return self._submit(role, inputs, {"set": on}, settings, seed=seed, tag=tag, greedy=greedy, further=further)

    def _submit(
        self,
        role: str,
        inputs: Mapping[str, Artifact],
        selection: Mapping[str, Any],
        settings: Settings,
        *,
        seed: int,
        tag: str,
        greedy: bool = False,
        further: Sequence[float] = (),
        system: str | None = None,
    ) -> Artifact:
        engine = self.recipe.engine
        return self.runner.submit(
            StageCall(
                "answers",
                config={
                    **selection,
                    "answers": settings,
                    "tag": tag,
                    "greedy": greedy,
                    "further": list(further),
                    "system": system,
                    # What decides the answers: not where a server is, or how it is started.
                    "engine": engine.model_dump(mode="json", exclude={"server"})
                    | ({"server": engine.server.kind} if engine.server else {}),
                },
                inputs=inputs,
                seed=seed,
                runtime={"server": engine.server.model_dump(mode="json")} if engine.server else {},
                role=f"answers_{role}",
            )
        )


def settings_of(section: Preferences | Samples | Pairs | Evaluate) -> dict[str, Any]:
    """K and the sampling parameters of a section of the recipe."""
    return {
        "k": section.k,
        "temperature": section.temperature,
        "top_p": section.top_p if isinstance(section, Samples) else 1.0,
        "max_new_tokens": section.max_new_tokens,
    }
