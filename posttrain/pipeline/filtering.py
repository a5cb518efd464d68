"""Inputs of the stages between scores and training: annotations, learned quality classifier, filters, diversity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from posttrain import models, shipped
from posttrain.execution.artifact import Artifact, StageCall, Stages, present
from posttrain.filters.extras import check_installed
from posttrain.pipeline.scored import in_key, not_in_key
from posttrain.recipe.recipe import Recipe
from posttrain.rewards import rubric
from posttrain.rewards.judge import identity
from posttrain.seeds import derive_seed
from posttrain.storage.files import file_hash

if TYPE_CHECKING:  # it imports pyarrow
    from posttrain.filters import Filter


@dataclass(frozen=True)
class Preferred:
    """What DPO made in a round, promoted or not, and the reference that it was made against."""

    policy: Artifact
    reference: Artifact


class Filtering:
    """Submits these stages. `base`: the recipe's model. Arguments called `number` are the round's."""

    def __init__(self, recipe: Recipe, runner: Stages, base: Artifact) -> None:
        self.recipe, self.runner, self.base = recipe, runner, base
        if recipe.quality_classifier:
            check_installed("quality", "quality_classifier")
        if recipe.annotate and recipe.annotate.topics:
            check_installed("quality", "annotate.topics")
        self._rated = {
            name: identity(rubric.load_for(name, rated.rubric), rated.judge)
            for name in ("tags", "difficulty")
            if recipe.annotate and (rated := getattr(recipe.annotate, name))
        }

    def annotations(self, prompts: Artifact, samples: Artifact) -> Artifact | None:
        """Annotations of the sampled prompts; None where the recipe has none."""
        section = self.recipe.annotate
        if section is None or not section.of_prompts:
            return None
        return self.runner.submit(
            StageCall(
                "annotate",
                config={"annotate": section.in_key()},
                inputs={"prompts": prompts, "answers": samples},
                seed=derive_seed(self.recipe.seed, "annotate"),  # topics are the same in every round
                external_hashes=self._rated,
                runtime={"annotate": section.not_in_key()},
            )
        )

    def columns(self) -> Mapping[str, Any]:
        """The columns that annotations and step scores add to the samples, as config of the stage `scores`."""
        annotate = self.recipe.annotate
        columns = {"columns": annotate.columns} if annotate else {}
        return {**columns, **({"step_scores": True} if self.recipe.step_scores else {})}

    def step_scores(
        self, samples: Artifact, preferred: Preferred | None, step_reward: Artifact | None
    ) -> Artifact | None:
        """The scores of the samples' steps by what the last round trained; None where there is none yet, or the recipe
        has none."""
        section = self.recipe.step_scores
        inputs, config = self.scorer_of_steps("policy", "reference", preferred, step_reward)
        if section is None or not inputs:
            return None
        config = {**config, "step_ends": self.recipe.step_ends, "engine": self.recipe.engine.built_in()}
        return self.runner.submit(
            StageCall("step_scores", config=config, inputs={"answers": samples, **inputs}, seed=0)
        )

    def scorer_of_steps(
        self, policy: str, reference: str, preferred: Preferred | None, step_reward: Artifact | None
    ) -> tuple[dict[str, Artifact], dict[str, Any]]:
        """What scores steps as the recipe says, as inputs of a stage and its config; both empty where there is nothing
        yet. `policy`, `reference`: the roles of DPO's two."""
        section, dpo = self.recipe.step_scores, self.recipe.dpo
        if section is None:
            return {}, {}
        if section.by == "step_reward":
            return present(step_reward=step_reward), {}
        if preferred is None:
            return {}, {}
        assert dpo
        roles = {policy: preferred.policy, reference: preferred.reference}
        return roles, {"beta": dpo.trl["beta"], "temperature": dpo.temperature}

    def classifier(self, number: int, filtered: Sequence[Artifact], policy: Artifact) -> Artifact | None:
        """The classifier fitted to the rows kept and dropped in all rounds so far; None where there are none yet."""
        section = self.recipe.quality_classifier
        if section is None or not (filtered or section.labels):
            return None
        labels = shipped.locate("data", section.labels) if section.labels else None
        return self.runner.submit(
            StageCall(
                "quality_classifier",
                config={"classifier": section.in_key()},
                inputs={
                    **{f"filters_{number:03}": table for number, table in enumerate(filtered, 1)},
                    **present(policy=policy if section.features == "policy" else None),
                },
                seed=derive_seed(self.recipe.seed, "quality_classifier", number),
                external_hashes={"labels": file_hash(labels)} if labels else {},
                runtime={"classifier": section.not_in_key()},
            )
        )

    def filters(
        self,
        number: int,
        scored: Artifact,
        prompts: Artifact,
        kept: Sequence[Artifact] = (),
        classifier: Artifact | None = None,
        policy: Artifact | None = None,
    ) -> Artifact:
        """`kept`: the filters' tables of earlier rounds, for filters across rounds. `classifier`: the learned one;
        `policy`: the model whose hidden states it reads."""
        chain = cast("list[Filter]", self.recipe.filters)
        section = self.recipe.quality_classifier
        reads_tokens = any("special_tokens" in one.reads for one in chain)
        tokens = {"special_tokens": models.special_tokens(self.base.path)} if reads_tokens else {}
        across = any(getattr(one, "across_rounds", False) for one in chain)
        learned = classifier if any(one.use == "learned-quality" for one in chain) else None
        reads_states = learned and section and section.features == "policy"
        return self.runner.submit(
            StageCall(
                "filters",
                config={**in_key("filters", chain), **tokens},
                inputs={
                    **present(scored=scored, prompts=prompts, quality_classifier=learned),
                    **present(policy=policy if reads_states else None),
                    **(earlier(kept) if across else {}),
                },
                seed=derive_seed(self.recipe.seed, "filters", number),
                external_hashes={
                    f"filters.{index}.{name}": value
                    for index, one in enumerate(chain)
                    for name, value in one.external_hashes().items()
                },
                runtime=not_in_key("filters", chain),
            )
        )

    def diversity(self, kept: Sequence[Artifact]) -> Artifact:
        """The diversity of the rows kept in this round, compared to the first round's."""
        section = self.recipe.collapse
        assert section
        return self.runner.submit(
            StageCall(
                "diversity",
                config={"collapse": section.in_key()},
                inputs=present(kept=kept[-1], first=kept[0] if len(kept) > 1 else None),
                seed=derive_seed(self.recipe.seed, "diversity"),
            )
        )

    def collapsed(self, diversity: Artifact) -> bool:
        """Whether the run stops because of collapse. Waits for the stage only where `collapse.stop` is set."""
        section = self.recipe.collapse
        return bool(section and section.stop and self.runner.metrics(diversity)["warnings"])


def earlier(kept: Sequence[Artifact]) -> dict[str, Artifact]:
    """The filters' tables of earlier rounds, by input role (earlier_001, …)."""
    return {f"earlier_{number:03}": table for number, table in enumerate(kept, 1)}
