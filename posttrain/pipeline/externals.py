"""Files outside a run that decide its results (base model, reward files, prompt sets), with their content hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from posttrain import models, rewards
from posttrain.config import JudgeModel, Model, PromptSet, by_round
from posttrain.data import load as loaders
from posttrain.execution.artifact import Artifact
from posttrain.recipe.recipe import Recipe
from posttrain.rewards import pairwise


@dataclass(frozen=True)
class ExternalInputs:
    """The base model, its Hub id and revision if it has one (by peft's names), and content hashes: `rewards` by their
    `use`, `train` by round (see `of_round`), `evaluated` by set, `given` by section and round. `reference`: DPO's, if
    the recipe names a folder. `judges`: folders of judge models that run on this machine."""

    base: Artifact
    base_on_hub: Mapping[str, str] | None
    rewards: Mapping[str, str]
    train: Sequence[str]
    evaluated: Mapping[str, str]
    given: Mapping[str, Sequence[str]]
    reference: Artifact | None
    judges: Sequence[Path]


def external_inputs(recipe: Recipe) -> ExternalInputs:
    """Resolves and hashes what the recipe names outside the run.

    Raises:
        InputError: a model, reward file or prompt set is missing or cannot be read.
    """

    def content(sets: Iterable[PromptSet]) -> list[str]:
        return [loaders.content_hash(each, recipe.prompts.system) for each in sets]

    base, prompts = models.resolve(recipe.model), recipe.prompts
    evaluated = {"dev": prompts.dev, "heldout": prompts.heldout, **({"real": prompts.real} if prompts.real else {})}
    against = {f"against_{number}": loaders.content_hash(one) for number, one in enumerate(prompts.against, 1)}
    hashes = {entry.use: rewards.load(entry).identity for entry in recipe.reward_files()}
    watched = [judge for judge in recipe.judges() if not judge.is_model]
    hashes |= {judge.use: pairwise.load(judge.entry).identity for judge in watched}
    return ExternalInputs(
        Artifact(f"base-{base.hash[:16]}", base.path),
        {"base_model_name_or_path": base.hub_id, "revision": base.hash} if base.hub_id else None,
        hashes,
        content(by_round(prompts.train)),
        dict(zip(evaluated, content(evaluated.values()), strict=True)) | against,
        {name: content(sets) for name, sets in recipe.given().items()},
        _reference(recipe.dpo.reference) if recipe.dpo else None,
        sorted({models.resolve(Model(path=path, revision=one.revision)).path for one, path in _local_judges(recipe)}),
    )


def _local_judges(value: object) -> Iterator[tuple[JudgeModel, str]]:
    """The judges anywhere in a recipe that are models on this machine, with their paths."""
    if isinstance(value, JudgeModel) and value.path is not None:
        yield value, value.path
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _local_judges(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            yield from _local_judges(one)


def _reference(name: str) -> Artifact | None:
    if "/" not in name:
        return None
    resolved = models.resolve(Model(path=name))
    return Artifact(f"reference-{resolved.hash[:16]}", resolved.path)
