"""Inputs of the stage `answers` in each of its roles: policy, prompts, K, sampling parameters, engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config import Evaluate, Pairs, Preferences, Samples
from posttrain.execution.artifact import Artifact, StageCall, Stages, present
from posttrain.recipe.recipe import Recipe


class Answers:
    """`in_int8`: whether answers to training prompts are; those that policies are judged by never are."""

    def __init__(self, recipe: Recipe, runner: Stages, in_int8: bool) -> None:
        self.recipe, self.runner, self.in_int8 = recipe, runner, in_int8

    def submit(
        self,
        role: str,
        prompts: Artifact,
        policy: Artifact,
        selection: Mapping[str, Any],
        settings: Mapping[str, Any],
        *,
        seed: int,
        tag: str = "",
        greedy: bool = False,
        further: Sequence[float] = (),
        system: str | None = None,
        hint: str | None = None,
        difficulty: Artifact | None = None,
    ) -> Artifact:
        """Answers to the prompts that `difficulty` selected, else to those of the `selection`. `settings`: see
        `settings_of`. `further`: more temperatures, with K // 2 samples each."""
        engine, runtime = self.engine(selection["set"])
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
                    **({"hint": hint} if hint else {}),
                    **engine,
                },
                inputs=present(prompts=prompts, policy=policy, difficulty=difficulty),
                seed=seed,
                runtime=runtime,
                role=f"answers_{role}",
            )
        )

    def engine(self, on: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What samples answers to prompts of the set `on`, as config and runtime of a stage. The config has what
        decides the answers: not where a server is, or how it is started."""
        engine = self.recipe.engine
        if self.in_int8 and on == "train":
            engine = engine.model_copy(update={"dtype": "int8"})
        config = engine.model_dump(mode="json", exclude={"server"})
        if engine.server is None:
            return {"engine": config}, {}
        return {"engine": {**config, "server": engine.server.kind}}, {"server": engine.server.model_dump(mode="json")}


def to_train(take: Mapping[str, Any], where: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Selects `take` of the training prompts that match `where`."""
    return {"set": "train", "take": take, "where": where}


def to_evaluate(on: str) -> dict[str, Any]:
    """Selects all prompts of a set."""
    return {"set": on}


def settings_of(section: Preferences | Samples | Pairs | Evaluate) -> dict[str, Any]:
    """K and the sampling parameters of a section of the recipe."""
    return {
        "k": section.k,
        "temperature": section.temperature,
        "top_p": section.top_p if isinstance(section, Samples) else 1.0,
        "max_new_tokens": section.max_new_tokens,
    }
