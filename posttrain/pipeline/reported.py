"""Inputs of the stages that only report: benchmarks, contamination, memorisation, label variants, forecast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from posttrain import shipped
from posttrain.config.benchmark import Benchmark
from posttrain.evaluation.benchmark_files import identity
from posttrain.execution.artifact import Artifact, StageCall, Stages, present
from posttrain.recipe.recipe import Recipe
from posttrain.seeds import derive_seed
from posttrain.storage.files import file_hash


class Reported:
    """Submits what a recipe has evaluated beside its own prompts, by our own engine in the float type of the recipe.
    In a run nothing waits for it, and nothing is chosen by it."""

    def __init__(self, recipe: Recipe, runner: Stages) -> None:
        self.recipe, self.runner = recipe, runner
        self.identities = {one.name: identity(one) for one in recipe.evaluate.benchmarks}
        variants = recipe.evaluate.label_variants
        self.questions = file_hash(shipped.locate("data", variants.path)) if variants else ""

    def check(self, base: Artifact) -> list[str]:
        """Reads all questions, and waits for that; returns warnings."""
        return self.warnings(self.checks(base).values())

    def check_benchmarks(self, base: Artifact) -> list[str]:
        """Those of benchmarks alone."""
        return self.warnings(self._benchmark_checks(base).values())

    def checks(self, base: Artifact) -> dict[str, Artifact]:
        """What reads the questions, by the role of the stage that asks them."""
        variants = self._label_variants("label_variants_check", base)
        return {**self._benchmark_checks(base), **present(label_variants=variants)}

    def _benchmark_checks(self, base: Artifact) -> dict[str, Artifact]:
        asked = self.recipe.evaluate.benchmarks
        return {f"benchmark_{one.name}": self._submit("benchmark_check", one, base) for one in asked}

    def warnings(self, checks: Iterable[Artifact]) -> list[str]:
        """Of such checks; waits for them."""
        return [said for one in checks for said in self.runner.metrics(one).get("fallback", ())]

    def benchmarks(self, policy: Artifact) -> dict[str, Artifact]:
        """By name."""
        return {one.name: self._submit("benchmark", one, policy) for one in self.recipe.evaluate.benchmarks}

    def contamination(
        self, benchmarks: Mapping[str, Artifact], learned: Mapping[str, Artifact], earlier: Artifact | None
    ) -> Artifact | None:
        """How much of these benchmarks is in what was learned from up to this round, of which `learned` has the tables
        (by the roles of `stages.contamination.LEARNED`); None without benchmarks."""
        if not benchmarks:
            return None
        inputs = {**{f"benchmark_{name}": one for name, one in benchmarks.items()}, **learned}
        return self.runner.submit(
            StageCall("contamination", config={}, inputs={**inputs, **present(earlier=earlier)}, seed=0)
        )

    def memorisation(self, policy: Artifact, kept: Artifact, heldout: Artifact) -> None:
        """How much `policy` has by heart of what was kept, against held-out answers of the policy that wrote that.
        Where the recipe asks for it, and has SFT."""
        section = self.recipe.evaluate.memorisation
        if section is None or self.recipe.sft is None:
            return
        self.runner.submit(
            StageCall(
                "memorisation",
                config={"memorisation": section.in_key(), "engine": self.recipe.engine.built_in()},
                inputs={"policy": policy, "kept": kept, "heldout": heldout},
                seed=0,
            )
        )

    def forecast(self, measured: Sequence[tuple[Artifact, Artifact]]) -> None:
        """From the starting model and each round's policy, with their held-out answers, once there are as many as the
        recipe asks for."""
        section = self.recipe.evaluate.forecast
        if section is None or len(measured) != 1 + section.rounds:
            return
        inputs: dict[str, Artifact] = {}
        for number, (policy, heldout) in enumerate(measured):
            inputs |= {f"policy_{number}": policy, f"heldout_{number}": heldout}
        rewards = {entry.name: entry.weight for entry in self.recipe.functions()}
        self.runner.submit(
            StageCall(
                "forecast",
                config={
                    "forecast": section.in_key(["rounds"]),
                    "rewards": rewards,
                    "engine": self.recipe.engine.built_in(),
                },
                inputs=inputs,
                seed=0,
                runtime={"forecast": section.not_in_key()},
            )
        )

    def label_variants(self, policy: Artifact) -> None:
        """Multiple-choice questions put in several ways, where the recipe has some."""
        self._label_variants("label_variants", policy)

    def _label_variants(self, stage: str, policy: Artifact) -> Artifact | None:
        section = self.recipe.evaluate.label_variants
        if section is None:
            return None
        call = StageCall(
            stage,
            config={"label_variants": section.in_key(), "engine": self.recipe.engine.built_in()},
            inputs={"policy": policy},
            seed=0,
            external_hashes={"questions": self.questions},
            runtime={"label_variants": section.not_in_key()},
        )
        return self.runner.submit(call)

    def _submit(self, stage: str, benchmark: Benchmark, policy: Artifact) -> Artifact:
        return self.runner.submit(
            StageCall(
                stage,
                config={"benchmark": benchmark.in_key(), "engine": self.recipe.engine.built_in()},
                inputs={"policy": policy},
                seed=derive_seed(self.recipe.seed, "benchmark", benchmark.name),
                external_hashes={"benchmark": self.identities[benchmark.name]},
                runtime={"benchmark": benchmark.not_in_key()},
                role=f"{stage}_{benchmark.name}",
            )
        )
