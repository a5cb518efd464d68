"""Inputs of the trained stages: each variant, and the average of the variants or the best (Llama 3, section 4.1.5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain.config import Sft, Trained
from posttrain.config.section import of_round
from posttrain.config.training import TRAINED
from posttrain.execution.artifact import Artifact, StageCall, Stages
from posttrain.pipeline.externals import ExternalInputs
from posttrain.pipeline.scored import Compare, Inputs
from posttrain.recipe.recipe import Recipe
from posttrain.seeds import derive_seed
from posttrain.storage.store import link_name
from posttrain.system import gpu, versions


class Training:
    def __init__(self, recipe: Recipe, runner: Stages, external: ExternalInputs) -> None:
        self.recipe, self.runner, self.external = recipe, runner, external
        self._last: dict[str, Artifact] = {}

    def stage(
        self,
        name: str,
        section: Trained | None,
        number: int,
        inputs: Callable[[Any], Inputs],
        compare: Compare,
        fields: Mapping[str, Any] = {},
    ) -> Artifact:
        """A trained stage of round `number`: its variants, if it has any, and then their average or the best. `fields`:
        further `config`, `runtime` and `external_hashes` of it."""
        assert section
        before = self._last.get(name)  # of an earlier round: variants do not wait for one another
        fitted = self.runner.metrics(before).get("micro_batch") if before else None
        runtime = {**fields.get("runtime", {}), **({"micro_batch": fitted} if fitted else {})}
        more = {name: fields[name] for name in ("config", "external_hashes") if name in fields}
        seed = derive_seed(self.recipe.seed, name, number)
        made = [
            self.train(name, number, _in_round(one, number), inputs(one), own, role, runtime=runtime, **more)
            for one, own, role in variants(name, section, seed)
        ]
        self._last[name] = made[-1]
        return self.choose(name, made, len(made), compare) if section.variants else made[0]

    def trial(self, base: Artifact) -> Artifact | None:
        """One optimizer step of each training of the recipe, in small; None if it has no training.

        Runs again when an option, the model, a library version or the presence of a GPU changes. No stage reads it.
        """
        sections = {name: getattr(self.recipe, name) for name in TRAINED}
        if self.recipe.watch:
            sections["watch.reward_model"] = self.recipe.watch.reward_model
        trainings = [
            {
                "key": f"{name}.variants.{number}" if section.variants else name,
                "stage": section.trainer,
                "section": one.model_dump(mode="json", include={*one.trl, *one.made_with}),
            }
            for name, section in sections.items()
            if section
            for number, (one, _, _) in enumerate(variants(name, section, 0))
        ]
        if not trainings:
            return None
        model = self.recipe.model.in_key()
        return self.runner.submit(
            StageCall(
                "trial",
                config={"trainings": trainings, "model": model, "versions": versions(), "gpu": gpu()},
                inputs={"model": base},
                seed=0,
                runtime={"places": self.recipe.places},
            )
        )

    def average(self, models: Sequence[Artifact], role: str = "") -> Artifact:
        """The average of the models' weights; a single model is returned as it is."""
        if len(models) == 1:
            return models[0]
        inputs = {f"model_{number}": model for number, model in enumerate(models, 1)}
        return self.runner.submit(StageCall("average", config={}, inputs=inputs, seed=0, role=role))

    def given(self, name: str, number: int) -> tuple[dict[str, str], dict[str, Any]]:
        """`external_hashes` and `runtime` for the rows given to the section `name` in round `number`; empty if none."""
        sets = self.recipe.given().get(name)
        if sets is None:
            return {}, {}
        given = {"set": of_round(sets, number).model_dump(mode="json"), "system": self.recipe.prompts.system}
        return {"given": of_round(self.external.given[name], number)}, {"given": given}

    def choose(self, role: str, models: Sequence[Artifact], alone: int, compare: Compare) -> Artifact:
        """The average of models, or the best of the first `alone` of them if that is better on dev."""
        mean = self.average(models, f"{role}_mean")
        candidates = {"mean": mean, **{str(number): model for number, model in enumerate(models[:alone], 1)}}
        inputs, given = compare(candidates)
        return self.runner.submit(
            StageCall(
                "choose",
                config={"choose": {"alone": alone}, **given.get("config", {})},
                inputs={
                    "mean": mean,
                    **{f"model_{number}": model for number, model in enumerate(models, 1)},
                    **inputs,
                },
                seed=derive_seed(self.recipe.seed, "evaluate", 0),
                external_hashes=given.get("external_hashes", {}),
                runtime=given.get("runtime", {}),
                role=role,
            )
        )

    def _how(self, role: str, number: int) -> dict[str, Any]:
        """Runtime of a training: minutes between checkpoints, and trackers with project and run name."""
        compute = self.recipe.compute
        runtime: dict[str, Any] = {
            "checkpoint_minutes": compute.checkpoint_minutes,
            "processes": compute.processes,
            "shard": compute.shard,
        }
        if self.recipe.report_to:
            to, project = self.recipe.report_to, self.recipe.name
            runtime["report"] = {"to": to, "project": project, "name": link_name(number, role)}
        return runtime

    def _start(self, start: Artifact) -> dict[str, Any]:
        """Runtime of a training that keeps its adapter: the base model for the adapter's config. An artifact needs
        none: its folder is its name."""
        lora = self.recipe.model.lora
        if lora is None or lora.adapters == "merge" or start != self.external.base:
            return {}
        return {"start": self.external.base_on_hub or {"base_model_name_or_path": start.key}}

    def train(
        self,
        name: str,
        number: int,
        section: Trained,
        inputs: Inputs,
        seed: int,
        role: str,
        *,
        config: Mapping[str, Any] = {},
        runtime: Mapping[str, Any] = {},
        external_hashes: Mapping[str, str] = {},
    ) -> Artifact:
        """One training of round `number`. `config`, `runtime` and `external_hashes`: further ones of it."""
        hashes, given = self.given(name, number)
        places = {key: place for key, place in self.recipe.places.items() if key.partition(".")[0] == name}
        return self.runner.submit(
            StageCall(
                name,
                config={name: section.in_key(), "model": self.recipe.model.in_key(), **config},
                inputs=inputs,
                seed=seed,
                external_hashes={**hashes, **external_hashes},
                runtime={
                    "places": places,
                    name: section.not_in_key(),
                    **given,
                    **runtime,
                    **self._start(inputs["model"]),
                    **self._how(role, number),
                    **({"processes": 1, "shard": None} if section.alone else {}),
                },
                role=role,
            )
        )


def _in_round(section: Trained, number: int) -> Trained:
    """The section for round `number`: without annealing before `anneal.from_round`."""
    if isinstance(section, Sft) and section.anneal and number < section.anneal.from_round:
        return section.model_copy(update={"anneal": None})
    return section


def variants(name: str, section: Trained, seed: int) -> list[tuple[Trained, int, str]]:
    """Section, seed and role of each variant of a stage; of the stage itself if it has none."""
    if not section.variants:
        return [(section, seed, name)]
    found = []
    for index in range(len(section.variants)):
        other = section.variants[index].get("seed", 0)
        own = derive_seed(seed, "variant", other) if other else seed
        found.append((section.variant(index), own, f"{name}_variant_{index + 1}"))
    return found
