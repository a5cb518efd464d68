"""The config, inputs and seed of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config import PromptSet, RewardEntry, RewardModel, Sft, Trained, by_round
from posttrain.config.section import of_round
from posttrain.config.step_reward import StepReward
from posttrain.config.training import TRAINED
from posttrain.execution.artifact import Artifact, StageCall, Stages, present
from posttrain.pipeline.answers import Answers, settings_of, to_train
from posttrain.pipeline.externals import external_inputs
from posttrain.pipeline.filtering import Filtering, Preferred, earlier
from posttrain.pipeline.hardware import settled
from posttrain.pipeline.reported import Reported
from posttrain.pipeline.scored import Compare, Evaluated, Inputs, Scoring, in_key, not_in_key
from posttrain.pipeline.training import Training
from posttrain.recipe.recipe import Recipe
from posttrain.seeds import derive_seed


@dataclass(frozen=True)
class Tables:
    """The tables that a round's preference optimisation can learn from, and the answers that on-policy training did."""

    scored: Artifact
    pairs: Artifact | None
    preferences: Sequence[Artifact]
    rollouts: Artifact | None = None
    searched: Artifact | None = None
    corrected: Artifact | None = None


class StageInputs:
    """Submits the stages of a run, one method per stage, called by the loop in `posttrain.loop`. `scoring` has those of
    evaluations, `reported` those that only report, `filtering` those between scores and training."""

    def __init__(self, recipe: Recipe, runner: Stages) -> None:
        self.runner, self.number = runner, 0
        self.external = external_inputs(recipe)
        self.base = self.external.base
        self.in_int8 = recipe.engine.dtype == "int8"
        self._use(recipe)

    def _use(self, recipe: Recipe) -> None:
        runner = self.runner
        self.recipe = recipe
        self.answers = Answers(recipe, runner, self.in_int8)
        self.scoring = Scoring(recipe, runner, self.external.rewards, self.answers)
        self.filtering = Filtering(recipe, runner, self.base)
        self.training = Training(recipe, runner, self.external)
        self.reported = Reported(recipe, runner)

    def settle(self, prompts: Artifact) -> None:
        """Resolves every `auto` of the recipe by a stage that measures this machine. Waits for the prompts, so that
        wrong inputs leave no run and nothing disturbs the measurement, and for the stage."""
        self.runner.metrics(prompts)
        self._use(settled(self.recipe, self.runner, self.base))

    def begin(self, number: int) -> None:
        self.number = number
        self.runner.begin_round(number)

    def reads_pairs(self, source: str) -> bool:
        """Whether any stage of the recipe learns from this source of pairs."""
        trained = [section for name in TRAINED if (section := getattr(self.recipe, name))]
        by_model = self.recipe.reward_model is not None or self.recipe.watch is not None
        return any(source in section.sources for section in trained) or (source == "preferences" and by_model)

    def prompts(self) -> Artifact:
        """All prompt sets, with the round's training set. Round 0 also checks later training sets and given rows."""
        recipe = self.recipe
        sets = by_round(recipe.prompts.train)
        given = {
            name: {"as": getattr(recipe, name).given_as, "sets": _dumped(each)} for name, each in recipe.given().items()
        }
        train, later = of_round(sets, self.number), {"later": _dumped(sets[1:]), "given": given}
        sections = [recipe.preferences, recipe.samples, recipe.search, recipe.correction, recipe.online, recipe.pairs]
        sections += [recipe.evaluate, recipe.step_reward.labels if recipe.step_reward else None]
        near = recipe.prompts.decontaminate
        made = self.runner.submit(
            StageCall(
                "prompts",
                config={
                    "too_long": recipe.prompts.too_long,
                    "max_new_tokens": max(section.max_new_tokens for section in sections if section),
                    "systems": sorted({message for message in recipe.samples.system if message is not None}),
                    **({"hint": recipe.samples.hint} if recipe.samples.hint else {}),
                    **({"decontaminate": near.in_key()} if near else {}),
                },
                inputs={"model": self.base},
                seed=0,
                external_hashes={"train": of_round(self.external.train, self.number), **self.external.evaluated},
                runtime={
                    "load_in_4bit": bool(recipe.model.lora and recipe.model.lora.load_in_4bit),
                    "lora": recipe.model.lora.model_dump(mode="json") if recipe.model.lora else None,
                    "reward_model": bool(recipe.reward_model or recipe.step_reward),
                    "prompts": recipe.prompts.model_copy(update={"train": train}).model_dump(mode="json"),
                    **({} if self.number else later),
                    **({"reference": str(self.external.reference.path)} if self.external.reference else {}),
                    "judge_models": [str(path) for path in self.external.judges],
                    "rewards": [entry.model_dump(mode="json", by_alias=True) for entry in recipe.reward_files()],
                    "reward_minutes": recipe.compute.reward_minutes,
                    "judges": [judge.model_dump(mode="json") for judge in self.recipe.judges() if not judge.is_model],
                },
            )
        )
        if not self.number:
            self._prompts = made
        return made

    def trial(self) -> list[str]:
        """Runs one optimizer step of each training in small, and waits for it. Returns a note for each training that
        could not be tried as it will be run."""
        made = self.training.trial(self.base)
        return list(self.runner.metrics(made).get("fallback", ())) if made else []

    def prompts_of_round(self) -> Artifact:
        """The prompts stage with this round's training set; that of round 0 if the set is the same."""
        same = of_round(self.external.train, self.number) == self.external.train[0]
        return self._prompts if same else self.prompts()

    def preferences(self, prompts: Artifact, policy: Artifact, previous: Artifact) -> Artifact:
        section = self.recipe.preferences
        assert section
        watch = {"watch": self.recipe.watch.share} if self.recipe.watch else {}
        sampled, (external_hashes, runtime) = section.prompts != 0, self.training.given("preferences", self.number)
        seed, take = self._seed("preferences"), self._take("preferences", section.prompts)

        def sampled_by(role: str, name: str, whom: Artifact) -> Artifact:
            selection, own = to_train(take, section.where), derive_seed(seed, name)
            return self.answers.submit(role, prompts, whom, selection, settings_of(section), seed=own, tag=name)

        answers = {
            "policy": sampled_by("preferences", "policy", policy),
            "previous": sampled_by("preferences_previous", "previous", previous),
        } if sampled else {}  # fmt: skip
        return self.scoring.stage(
            "preferences",
            {"preferences": section.in_key(exclude=("given",)), "take": take, **watch},
            {"prompts": prompts, **answers, **({"model": self.base} if runtime else {})},
            [entry for entry in self.recipe.reward if entry.labels and sampled],
            seed=seed,
            external_hashes=external_hashes,
            runtime=runtime,
        )

    def reward_model(self, preferences: Sequence[Artifact], last: Artifact | None) -> Artifact:
        def inputs(section: RewardModel) -> dict[str, Artifact]:
            start = last if last and section.start == "previous" else self.base
            return {"model": start, **_numbered(preferences, section.preferences)}

        # Variants are compared on the held-out pairs of the latest preferences.
        latest = _numbered(preferences, "latest")
        section = self.recipe.reward_model
        return self.training.stage("reward_model", section, self.number, inputs, lambda models: (latest, {}))

    def difficulty(self, prompts: Artifact, policy: Artifact) -> Artifact | None:
        """The selection of the round's prompts by difficulty; None where the recipe does not ask for one."""
        samples = self.recipe.samples
        section, count = samples.difficulty, samples.prompts
        if section is None or count is None:
            return None
        take = self._take("samples", round(count * section.pool))
        settings = {**settings_of(samples), "k": section.k, "top_p": 1.0}
        answers = self.answers.submit(
            "difficulty", prompts, policy, to_train(take), settings, seed=self._seed("difficulty")
        )
        return self._scored(
            "difficulty",
            {"wanted": of_round(section.pass_rate, self.number), "count": count, "take": take},
            {"prompts": prompts, "answers": answers},
            self.recipe.functions(),
        )

    def samples(self, prompts: Artifact, policy: Artifact, difficulty: Artifact | None) -> Artifact:
        section = self.recipe.samples
        return self.answers.submit(
            "samples",
            prompts,
            policy,
            to_train(self._take("samples", section.prompts)),
            settings_of(section),
            seed=self._seed("samples"),
            system=section.steering(self.number),
            hint=section.hint,
            difficulty=difficulty,
        )

    def scores(
        self,
        samples: Artifact,
        reward_model: Artifact | None,
        annotations: Artifact | None = None,
        step_scores: Artifact | None = None,
    ) -> Artifact:
        """The samples with their scores. `annotations`, `step_scores`: columns to add to them."""
        inputs = present(answers=samples, annotations=annotations, step_scores=step_scores)
        return self._scored("scores", self.filtering.columns(), inputs, *self.scoring.candidate_rewards(reward_model))

    def step_reward(self, scored: Artifact, policy: Artifact, previous: Artifact | None) -> Artifact:
        """The step reward model, of the samples that this policy gave. `previous`: the last round's."""
        section, functions = self.recipe.step_reward, self.recipe.functions()
        assert section
        config = {"labels": section.labels.in_key(), **self._continued()}
        labels = self._scored("step_labels", config, {"samples": scored, "policy": policy}, functions)

        def inputs(one: StepReward) -> Inputs:
            start = previous if one.start == "previous" and previous else self.base
            return {"model": start, "labels": labels, **present(previous=previous)}

        return self.training.stage("step_reward", section, self.number, inputs, self._on_dev("step_reward", None))

    def search(
        self,
        scored: Artifact,
        policy: Artifact,
        reward_model: Artifact | None,
        preferred: Preferred | None,
        step_reward: Artifact | None,
    ) -> Artifact:
        """The samples with what a search found, by the policy that sampled them; steps are scored by this round's step
        reward model, or as the recipe's `step_scores` says by the last round's DPO."""
        section = self.recipe.search
        assert section
        steps, config = present(step_reward=step_reward), dict[str, Any]()
        if step_reward is None:
            steps, config = self.filtering.scorer_of_steps("step_policy", "step_reference", preferred, None)
        config = {"search": section.in_key(), **self._continued(), **config}
        inputs = {"samples": scored, "policy": policy, **steps}
        return self._scored("search", config, inputs, *self.scoring.candidate_rewards(reward_model))

    def correction(self, samples: Artifact, policy: Artifact, reward_model: Artifact | None) -> Artifact:
        """The samples with the right answers of the policy that sampled them to what is said of its wrong ones."""
        section = self.recipe.correction
        assert section
        system = {name: text for name, text in self._steering().items() if name == "system"}
        config, runtime = self.answers.engine("train")
        config = {"correction": section.in_key(), **config, **system}
        entries, scorer = self.scoring.candidate_rewards(reward_model)
        inputs, seed = {"samples": samples, "policy": policy}, self._seed("correction")
        return self.scoring.stage("correction", config, inputs, entries, scorer, seed=seed, runtime=runtime)

    def sft(self, kept: Sequence[Artifact], policy: Artifact, reward_model: Artifact | None) -> Artifact:
        """SFT. `kept`: the filters' tables of all rounds so far."""

        def inputs(section: Sft) -> dict[str, Artifact]:
            chosen = {"model": policy if section.start == "previous" else self.base, "kept": kept[-1]}
            if section.mix.real.share:
                chosen["real"] = self._prompts
            if section.mix.earlier.share:
                chosen.update(earlier(kept[:-1]))
            return chosen

        return self.training.stage("sft", self.recipe.sft, self.number, inputs, self._on_dev("sft", reward_model))

    def online(self, policy: Artifact, scored: Artifact, reward_model: Artifact | None) -> Artifact:
        """On-policy training of `policy` on the prompts of the round's samples, by the rewards that score those."""
        entries, scorer = self.scoring.candidate_rewards(reward_model)
        config = {"engine": self.recipe.engine.built_in(), **self.scoring.computed_in(scorer)}
        inputs = present(model=policy, samples=scored, reward_model=scorer)
        section, fields = self.recipe.online, self.scoring.call_fields(config, entries)
        return self.training.stage(
            "online", section, self.number, lambda _: inputs, self._on_dev("online", reward_model), fields
        )

    def pairs(self, prompts: Artifact, policy: Artifact, reward_model: Artifact | None) -> Artifact:
        section = self.recipe.pairs
        assert section
        selection = to_train(self._take("pairs", section.prompts))
        answers = self.answers.submit(
            "pairs", prompts, policy, selection, settings_of(section), seed=self._seed("pairs")
        )
        rewards = self.scoring.candidate_rewards(reward_model)
        return self._scored("pairs", {"margin": section.margin}, {"answers": answers}, *rewards)

    def reference(self, previous: Artifact, promoted: Sequence[Artifact]) -> Artifact | None:
        """DPO's reference policy; None: the policy that DPO starts from."""
        assert self.recipe.dpo
        name = self.recipe.dpo.reference
        if name == "averaged":
            return self.training.average(promoted) if promoted else self.base
        named = {"start": None, "initial": self.base, "previous": previous}
        return named.get(name, self.external.reference)

    def preference_optimisation(
        self,
        name: str,
        policy: Artifact,
        tables: Tables,
        reward_model: Artifact | None,
        reference: Artifact | None = None,
    ) -> Artifact:
        """DPO or KTO: trains `policy` against `reference` (None: against itself) on the tables that the section `name`
        names, and on the rows given in the recipe."""

        def inputs(section: Trained) -> dict[str, Artifact]:
            there = {
                "samples": {"samples": tables.scored},
                "pairs": present(pairs=tables.pairs),
                "search": present(search=tables.searched),
                "correction": present(correction=tables.corrected),
                "preferences": _numbered(tables.preferences, getattr(section, "preferences", "latest")),
            }
            chosen = present(model=policy, reference=reference)
            if name in self.external.given:
                chosen["prompts"] = self._prompts  # what is given may be evaluated on
            return {**chosen, **{role: table for source in section.sources for role, table in there[source].items()}}

        section = getattr(self.recipe, name)
        return self.training.stage(name, section, self.number, inputs, self._on_dev(name, reward_model))

    def learned_from(self, kept: Artifact, tables: Tables) -> dict[str, Artifact]:
        """The tables that any training of the round learns from, by source."""
        sources = {source for name in TRAINED if (section := getattr(self.recipe, name)) for source in section.sources}
        varied = self.recipe.online is not None and self.recipe.online.variants  # an average has no table
        return present(
            kept=kept if self.recipe.sft else None,
            samples=tables.scored if "samples" in sources else None,
            pairs=tables.pairs,
            search=tables.searched if "search" in sources else None,
            correction=tables.corrected if "correction" in sources else None,
            online=None if varied else tables.rollouts,
            preferences=tables.preferences[-1] if tables.preferences else None,
        )

    def across_rounds(self, policy: Artifact, promoted: Sequence[Artifact], reward_model: Artifact | None) -> Artifact:
        """The round's policy averaged with the last promoted ones, if `average_rounds` is above 1."""
        others = self.recipe.average_rounds - 1
        if not others or not promoted:
            return policy
        compare = self._on_dev("across_rounds", reward_model)
        return self.training.choose("across_rounds", [policy, *promoted[-others:]], 1, compare)

    def promote(self, candidate: Evaluated, incumbent: Evaluated, reward_model: Artifact | None) -> tuple[bool, bool]:
        """Whether the candidate is promoted, and whether the test shows it to be better than the incumbent."""
        decision = self._scored(
            "promote",
            {"promote": self.recipe.promote},
            {"candidate": candidate.dev, "incumbent": incumbent.dev},
            self.recipe.functions(),
            self.scoring.gate(reward_model),
        )
        found = self.runner.metrics(decision)
        return found["promoted"], found["ci95"][0] > 0

    def watch(
        self,
        policy: Evaluated,
        previous: Evaluated,
        base: Evaluated,
        preferences: Sequence[Artifact],
        reward_model: Artifact | None,
    ) -> None:
        """Monitors over-optimisation: compares the round's held-out answers with earlier ones by a second reward model
        and by judges, and the judges with the labels of the round's preferences. Runs in the background; no other stage
        reads it."""
        watch = self.recipe.watch
        assert watch
        section, judges, functions = watch.reward_model, self.recipe.judges(), self.recipe.functions()
        uses = [judge.use for judge in judges if not judge.is_model]
        latest = preferences[-1] if preferences else None
        inputs, seed = {"model": self.base, **_numbered(preferences, "all")}, self._seed("watch_model")
        second = self.training.train(
            "reward_model", self.number, section, inputs, seed, "watch_model", config={"split": "watch"}
        )
        answers = {"policy": policy.heldout, "previous": previous.heldout, "base": base.heldout, "watch_model": second}
        self.runner.submit(
            StageCall(
                "watch",
                config={
                    **in_key("judges", judges),
                    **in_key("rewards", functions),
                    **self.scoring.computed_in(second),
                },
                inputs={**answers, **present(reward_model=reward_model, preferences=latest)},
                seed=self._seed("watch"),
                external_hashes=self.scoring.reward_hashes(uses),
                runtime={
                    **not_in_key("judges", judges),
                    **not_in_key("rewards", functions),
                    "reward_minutes": self.recipe.compute.reward_minutes,
                },
            )
        )

    def _scored(
        self,
        name: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        rewards: Sequence[RewardEntry],
        reward_model: Artifact | None = None,
    ) -> Artifact:
        return self.scoring.stage(name, config, inputs, rewards, reward_model, seed=self._seed(name))

    def _on_dev(self, role: str, reward_model: Artifact | None) -> Compare:
        return lambda models: self.scoring.on_dev(role, self._prompts, models, reward_model)

    def _continued(self) -> dict[str, Any]:
        """How beginnings of answers are gone on with, as config of a stage."""
        engine = self.recipe.engine.built_in()
        return {"step_ends": self.recipe.step_ends, "engine": engine, **self._steering()}

    def _steering(self) -> dict[str, str]:
        """What the round's samples are drawn with beside their prompts, as config of a stage; empty without."""
        section = self.recipe.samples
        given = {"system": section.steering(self.number), "hint": section.hint}
        return {name: text for name, text in given.items() if text}

    def _seed(self, stage: str) -> int:
        return derive_seed(self.recipe.seed, stage, self.number)

    def _take(self, stream: str, count: int | None) -> dict[str, Any]:
        """The round's slice of its training set. Each stream visits every prompt of it before any comes again."""
        sets = [of_round(self.external.train, number) for number in range(1, self.number + 1)]
        return {
            "seed": derive_seed(self.recipe.seed, "prompts", stream),
            "start": (count or 0) * (sets.count(sets[-1]) - 1),
            "count": count,
        }


def _dumped(sets: Sequence[PromptSet]) -> list[dict[str, Any]]:
    return [each.model_dump(mode="json") for each in sets]


def _numbered(preferences: Sequence[Artifact], which: str) -> dict[str, Artifact]:
    """Preference tables as inputs, by role: those of `all` rounds so far, or only the `latest`."""
    tables = {f"preferences_{number}": table for number, table in enumerate(preferences, 1)}
    return tables if which == "all" else dict(list(tables.items())[-1:])
