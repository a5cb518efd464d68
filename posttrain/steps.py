"""What each stage is given: config, inputs, seed, and the content from outside that decides its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain import loaders, models, pairwise, rewards, tracking
from posttrain.recipe import Dpo, Judge, Model, Recipe, RewardEntry, RewardModel, Sft, Trained
from posttrain.recipe.watch import SECOND
from posttrain.runner import Artifact, Runner
from posttrain.schedule import derive_seed
from posttrain.store import link_name
from posttrain.weighing import REWARD_MODEL

# Temperatures at which the starting model is measured: sharpening alone is no progress.
BASE_TEMPERATURES = [1.0, 0.7, 0.5, 0.3]


Inputs = Mapping[str, Artifact]
# What models are compared on: further inputs of the stage, and its `config`, `outside` and `settings`.
Comparison = tuple[Inputs, Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluated:
    """A policy's judged answers: on dev, by which it is promoted or not, and on the held-out prompts."""

    dev: Artifact
    heldout: Artifact


class Steps:
    """One method a stage, called by the loop in `posttrain.rounds`."""

    def __init__(self, recipe: Recipe, runner: Runner) -> None:
        self.recipe, self.runner = recipe, runner
        self.number = 0
        self._last_trained: dict[str, Artifact] = {}
        base = models.resolve(recipe.model)
        self.base = Artifact(f"base-{base.hash[:16]}", base.path)
        self._base_on_hub = {"base_model_name_or_path": base.hub_id, "revision": base.hash} if base.hub_id else None
        self._reward_hashes = {
            entry.use: rewards.content_hash(entry)
            for entry in [*recipe.reward, *recipe.evaluate.measure]
            if entry.use != REWARD_MODEL
        }
        watched = [judge for judge in self._judges() if not judge.is_model]
        self._reward_hashes |= {judge.use: pairwise.load(judge.entry).identity for judge in watched}
        self._prompt_hashes = {
            name: loaders.content_hash(getattr(recipe.prompts, name), recipe.prompts.system)
            for name in ("train", "dev", "heldout")
        }

    def begin(self, number: int) -> None:
        self.number = number
        self.runner.begin_round(number)

    def end(self, promoted: bool, policy: Artifact) -> None:
        self.runner.end_round(promoted, policy)

    def reads_pairs(self, source: str) -> bool:
        """Whether any stage that is not left out learns from this source of pairs."""
        by_dpo = self.recipe.dpo is not None and source in self.recipe.dpo.pairs_from
        by_model = self.recipe.reward_model is not None or self.recipe.watch is not None
        return by_dpo or (source == "preferences" and by_model)

    def prompts(self) -> Artifact:
        recipe = self.recipe
        sections = [recipe.preferences, recipe.samples, recipe.pairs, recipe.evaluate]
        self._prompts = self.runner.stage(
            "prompts",
            config={
                "too_long": recipe.prompts.too_long,
                "max_new_tokens": max(section.max_new_tokens for section in sections if section),
                "systems": sorted({message for message in recipe.samples.system if message is not None}),
            },
            inputs={"model": self.base},
            outside=self._prompt_hashes,
            settings={
                "load_in_4bit": bool(recipe.model.lora and recipe.model.lora.load_in_4bit),
                "prompts": recipe.prompts.model_dump(mode="json"),
                "rewards": [
                    entry.model_dump(mode="json", by_alias=True)
                    for entry in [*recipe.reward, *recipe.evaluate.measure]
                    if not entry.is_reward_model
                ],
                "judges": [judge.model_dump(mode="json") for judge in self._judges() if not judge.is_model],
            },
            seed=0,
        )
        return self._prompts

    def preferences(self, prompts: Artifact, policy: Artifact, previous: Artifact) -> Artifact:
        section = self.recipe.preferences
        assert section
        watch = {"watch": self.recipe.watch.share} if self.recipe.watch else {}
        return self._judged(
            "preferences",
            {
                "preferences": section.model_dump(mode="json"),
                "take": self._take("preferences", section.prompts),
                **watch,
            },
            {"prompts": prompts, "policy": policy, "previous": previous},
            [entry for entry in self.recipe.reward if entry.labels],
        )

    def reward_model(self, preferences: Sequence[Artifact], last: Artifact | None) -> Artifact:
        def inputs(section: RewardModel) -> dict[str, Artifact]:
            start = last if last and section.start == "previous" else self.base
            return {"model": start, **_numbered(preferences, section.preferences)}

        # Variants are compared on the held-out pairs of the latest preferences.
        latest = _numbered(preferences, "latest")
        return self._trained("reward_model", self.recipe.reward_model, inputs, lambda: (latest, {}))

    def difficulty(self, prompts: Artifact, policy: Artifact) -> Artifact | None:
        """Which prompts the round samples; None where they come as the schedule has them."""
        samples = self.recipe.samples
        section, count = samples.difficulty, samples.prompts
        if section is None or count is None:
            return None
        return self._judged(
            "difficulty",
            {
                "k": section.k,
                "wanted": section.wanted(self.number),
                "count": count,
                "samples": {"temperature": samples.temperature, "max_new_tokens": samples.max_new_tokens},
                "take": self._take("samples", round(count * section.pool)),
            },
            {"prompts": prompts, "policy": policy},
            self._functions(),
        )

    def samples(self, prompts: Artifact, policy: Artifact, difficulty: Artifact | None) -> Artifact:
        section = self.recipe.samples
        return self.runner.stage(
            "samples",
            config={
                "samples": section.model_dump(mode="json", exclude={"system", "difficulty"}),
                "system": section.steering(self.number),
                "take": self._take("samples", section.prompts),
                "engine": self._engine(),
            },
            inputs={"prompts": prompts, "policy": policy, **({"difficulty": difficulty} if difficulty else {})},
            settings=self._server(),
            seed=self._seed("samples"),
        )

    def scores(self, samples: Artifact, reward_model: Artifact | None) -> Artifact:
        return self._judged("scores", {}, {"samples": samples}, *self._scoring(reward_model))

    def filters(self, scored: Artifact, prompts: Artifact) -> Artifact:
        return self.runner.stage(
            "filters",
            config={"filters": [one.model_dump(mode="json") for one in self.recipe.filters]},
            inputs={"scored": scored, "prompts": prompts},
            seed=self._seed("filters"),
        )

    def sft(self, kept: Sequence[Artifact], policy: Artifact, reward_model: Artifact | None) -> Artifact:
        """`kept`: what the filters kept, in all rounds so far."""

        def inputs(section: Sft) -> dict[str, Artifact]:
            chosen = {"model": policy if section.start == "previous" else self.base, "kept": kept[-1]}
            if section.mix.earlier.share:
                chosen.update({f"earlier_{number:03}": table for number, table in enumerate(kept[:-1], 1)})
            return chosen

        return self._trained("sft", self.recipe.sft, inputs, lambda: self._on_dev(reward_model))

    def pairs(self, prompts: Artifact, policy: Artifact, reward_model: Artifact | None) -> Artifact:
        section = self.recipe.pairs
        assert section
        return self._judged(
            "pairs",
            {"pairs": section.model_dump(mode="json"), "take": self._take("pairs", section.prompts)},
            {"prompts": prompts, "policy": policy},
            *self._scoring(reward_model),
        )

    def reference(self, previous: Artifact, promoted: Sequence[Artifact]) -> Artifact | None:
        """DPO's reference policy. None: what DPO starts from."""
        assert self.recipe.dpo
        name = self.recipe.dpo.reference
        if name == "start":
            return None
        if name == "initial":
            return self.base
        if name == "previous":
            return previous
        if name == "averaged":
            return self.average(promoted) if promoted else self.base
        resolved = models.resolve(Model(path=name))
        return Artifact(f"reference-{resolved.hash[:16]}", resolved.path)

    def average(self, models: Sequence[Artifact]) -> Artifact:
        """The mean of the models' weights; of one, that one."""
        if len(models) == 1:
            return models[0]
        inputs = {f"model_{number}": model for number, model in enumerate(models, 1)}
        return self.runner.stage("average", config={}, inputs=inputs, seed=0)

    def dpo(
        self,
        policy: Artifact,
        reference: Artifact | None,
        preferences: Sequence[Artifact],
        scored: Artifact,
        pairs: Artifact | None,
        reward_model: Artifact | None,
    ) -> Artifact:
        sources = {"samples": {"samples": scored}, "pairs": {"pairs": pairs} if pairs else {}}

        def inputs(section: Dpo) -> dict[str, Artifact]:
            tables = {**sources, "preferences": _numbered(preferences, section.preferences)}
            chosen = {"model": policy, **({"reference": reference} if reference else {})}
            return {**chosen, **{role: table for name in section.pairs_from for role, table in tables[name].items()}}

        return self._trained("dpo", self.recipe.dpo, inputs, lambda: self._on_dev(reward_model))

    def across_rounds(self, policy: Artifact, promoted: Sequence[Artifact], reward_model: Artifact | None) -> Artifact:
        """The round's policy averaged with the last promoted ones, where the recipe says so."""
        others = self.recipe.average_rounds - 1
        if not others or not promoted:
            return policy
        return self._choose("across_rounds", [policy, *promoted[-others:]], 1, *self._on_dev(reward_model))

    def evaluate_base(self, prompts: Artifact) -> Evaluated:
        further = [t for t in BASE_TEMPERATURES if t != self.recipe.evaluate.temperature]
        return self._evaluate(prompts, self.base, None, {"temperatures": further})

    def evaluate(self, prompts: Artifact, policy: Artifact, reward_model: Artifact | None) -> Evaluated:
        """On dev, for the gate. Held-out prompts are answered aside: nothing in a run depends on how."""
        return self._evaluate(prompts, policy, reward_model, {})

    def promote(self, candidate: Evaluated, incumbent: Evaluated, reward_model: Artifact | None) -> tuple[bool, bool]:
        """Whether the candidate replaces the last promoted policy, and whether the test shows it to be better."""
        functions = self._functions()
        decision = self._judged(
            "promote",
            {"promote": self.recipe.promote},
            {"candidate": candidate.dev, "incumbent": incumbent.dev},
            functions,
            None if functions else reward_model,
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
        """The round's held-out answers beside those before, by a second reward model and by judges. Nothing waits for
        it, and no other stage reads it."""
        watch = self.recipe.watch
        assert watch
        section, judges, functions = watch.reward_model, self._judges(), self._functions()
        uses = [judge.use for judge in judges if not judge.is_model]
        model = self.recipe.model
        second = self.runner.stage(
            "reward_model",
            config={"reward_model": section.model_dump(mode="json"), "model": model.training(), "split": "watch"},
            decides={"reward_model": section.key(), "model": model.key(), "split": "watch"},
            inputs={"model": self.base, **_numbered(preferences, "all")},
            settings={**self._start(self.base), **self._report("watch_model")},
            seed=self._seed("watch_model"),
            aside=True,
            role="watch_model",
        )
        answers = {"policy": policy.heldout, "previous": previous.heldout, "base": base.heldout}
        self.runner.stage(
            "watch",
            config={
                "judges": [{**judge.model_dump(mode="json"), "use": _name(judge.use)} for judge in judges],
                "rewards": [_entry(entry) for entry in functions],
            },
            inputs={**answers, "watch_model": second, **({"reward_model": reward_model} if reward_model else {})},
            outside={_name(use): self._reward_hashes[use] for use in uses},
            settings={"reward_files": {_name(use): use for use in uses}},
            seed=self._seed("watch"),
            aside=True,
        )

    def _judges(self) -> list[Judge]:
        """Who compares the answers of rounds."""
        if self.recipe.watch is None:
            return []
        functions = [Judge(use=entry.use, function=entry.function) for entry in self._functions()]
        return self.recipe.watch.judges or [Judge(use=SECOND), *functions]

    def _evaluate(
        self, prompts: Artifact, policy: Artifact, reward_model: Artifact | None, further: Mapping[str, Any]
    ) -> Evaluated:
        section = self.recipe.evaluate.model_dump(mode="json", by_alias=True)
        section["measure"] = [_entry(entry) for entry in self.recipe.evaluate.measure]

        def on(stage: str) -> Artifact:
            # The same seed in every round: policies are compared on the same draws.
            return self._judged(
                stage,
                {"evaluate": section, **further},
                {"prompts": prompts, "policy": policy},
                self._functions(),
                reward_model,
                seed=0,
                aside=stage == "heldout",
            )

        return Evaluated(on("evaluate"), on("heldout"))

    def _functions(self) -> list[RewardEntry]:
        """The reward functions that judge candidates."""
        return [entry for entry in self.recipe.reward if entry.scores and not entry.is_reward_model]

    def _scoring(self, reward_model: Artifact | None) -> tuple[list[RewardEntry], Artifact | None]:
        """What candidates are scored by: functions, and the reward model where the recipe uses it and there is one."""
        models = [entry for entry in self.recipe.reward if entry.is_reward_model and reward_model]
        return self._functions() + models, reward_model if models else None

    def _judged(
        self,
        name: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        rewards: Sequence[RewardEntry],
        reward_model: Artifact | None = None,
        seed: int | None = None,
        aside: bool = False,
    ) -> Artifact:
        """A stage in which rewards judge answers. Only those that do are in its key."""
        measured = self.recipe.evaluate.measure if name in ("evaluate", "heldout") else []
        return self.runner.stage(
            name,
            inputs={**inputs, **({"reward_model": reward_model} if reward_model else {})},
            **self._judging(config, rewards, measured),
            seed=self._seed(name) if seed is None else derive_seed(self.recipe.seed, "evaluate", seed),
            aside=aside,
        )

    def _judging(
        self, config: Mapping[str, Any], rewards: Sequence[RewardEntry], measured: Sequence[RewardEntry] = ()
    ) -> dict[str, Any]:
        """`config`, `outside` and `settings` of a stage in which these judge answers."""
        uses = [entry.use for entry in [*rewards, *measured] if not entry.is_reward_model]
        return {
            "config": {**config, "rewards": [_entry(entry) for entry in rewards], "engine": self._engine()},
            "outside": {_name(use): self._reward_hashes[use] for use in uses},
            "settings": {"reward_files": {_name(use): use for use in uses}, **self._server()},
        }

    def _trained(
        self, name: str, section: Trained | None, inputs: Callable[[Any], Inputs], compared_on: Callable[[], Comparison]
    ) -> Artifact:
        """A trained stage; where it has variants, each of them, and then their mean or the best."""
        assert section
        before = self._last_trained.get(name)  # of an earlier round: variants do not wait for one another
        fitted = self.runner.metrics(before).get("micro_batch") if before else None
        settings = {"micro_batch": fitted} if fitted else {}
        made = [
            self._training(name, one, inputs(one), settings, seed, role)
            for one, seed, role in self._variants(name, section)
        ]
        self._last_trained[name] = made[-1]
        return self._choose(name, made, len(made), *compared_on()) if section.variants else made[0]

    def _variants(self, name: str, section: Trained) -> list[tuple[Trained, int, str]]:
        """Section, seed and role of each training of a stage: of one, where there are no variants."""
        seed = self._seed(name)
        if not section.variants:
            return [(section, seed, name)]
        seeds = [section.variant_seed(index) for index in range(len(section.variants))]
        return [
            (
                section.variant(index),
                derive_seed(seed, "variant", other) if other else seed,
                f"{name}_variant_{index + 1}",
            )
            for index, other in enumerate(seeds)
        ]

    def _training(
        self, name: str, section: Trained, inputs: Inputs, settings: Mapping[str, Any], seed: int, role: str
    ) -> Artifact:
        if isinstance(section, Sft) and section.anneal and self.number < section.anneal.from_round:
            section = section.model_copy(update={"anneal": None})
        model = self.recipe.model
        return self.runner.stage(
            name,
            config={name: section.model_dump(mode="json"), "model": model.training()},
            decides={name: section.key(), "model": model.key()},
            inputs=inputs,
            settings={**settings, **self._start(inputs["model"]), **self._report(role)},
            seed=seed,
            role=role,
        )

    def _report(self, role: str) -> dict[str, Any]:
        """Where a training's metrics go, and under which name."""
        if not self.recipe.report_to:
            return {}
        folder = self.runner.store.root.resolve() / tracking.FOLDER
        name = link_name(self.number, role)
        to = self.recipe.report_to
        return {"report": {"to": to, "project": self.recipe.name, "name": name, "folder": str(folder)}}

    def _start(self, start: Artifact) -> dict[str, Any]:
        """What an adapter that is kept is told it belongs on."""
        lora = self.recipe.model.lora
        if lora is None or lora.adapters == "merge":
            return {}
        on_hub = self._base_on_hub if start == self.base else None
        return {"start": on_hub or {"base_model_name_or_path": start.key}}

    def _choose(
        self,
        role: str,
        models: Sequence[Artifact],
        alone: int,
        inputs: Mapping[str, Artifact],
        given: Mapping[str, Any],
    ) -> Artifact:
        """The mean of models, or the best of the first `alone` of them where that is better on dev."""
        return self.runner.stage(
            "choose",
            config={"choose": {"alone": alone}, **given.get("config", {})},
            inputs={**{f"model_{number}": model for number, model in enumerate(models, 1)}, **inputs},
            outside=given.get("outside"),
            settings=given.get("settings"),
            seed=derive_seed(self.recipe.seed, "evaluate", 0),
            role=role,
        )

    def _on_dev(self, reward_model: Artifact | None) -> Comparison:
        """Policies are compared by what the gate judges by."""
        functions = self._functions()
        judge = None if functions else reward_model
        inputs = {"prompts": self._prompts, **({"reward_model": judge} if judge else {})}
        section = self.recipe.evaluate.model_dump(mode="json", by_alias=True, exclude={"measure"})
        return inputs, self._judging({"evaluate": section}, functions)

    def _engine(self) -> dict[str, Any]:
        """What of it decides the result: not where a server is, or how it is started."""
        engine = self.recipe.engine
        made = engine.model_dump(mode="json", exclude={"server"})
        return {**made, "server": engine.server.kind} if engine.server else made

    def _server(self) -> dict[str, Any]:
        server = self.recipe.engine.server
        return {"server": server.model_dump(mode="json")} if server else {}

    def _seed(self, stage: str) -> int:
        return derive_seed(self.recipe.seed, stage, self.number)

    def _take(self, stream: str, count: int | None) -> dict[str, Any]:
        """The round's slice of the training prompts: each stream goes through all of them before any comes again."""
        return {
            "seed": derive_seed(self.recipe.seed, "prompts", stream),
            "start": (count or 0) * (self.number - 1),
            "count": count,
        }


def _numbered(preferences: Sequence[Artifact], which: str) -> dict[str, Artifact]:
    """The tables of preferences that a stage learns from, by role: of `all` rounds so far, or the `latest` one's."""
    tables = {f"preferences_{number}": table for number, table in enumerate(preferences, 1)}
    return tables if which == "all" else dict(list(tables.items())[-1:])


def _name(use: str) -> str:
    """A reward's name without its folder: where a file lies decides nothing."""
    return use.rpartition("/")[2]


def _entry(entry: RewardEntry) -> dict[str, Any]:
    return {**entry.model_dump(mode="json", by_alias=True), "use": _name(entry.use)}
