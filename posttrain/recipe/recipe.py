"""A whole recipe: its sections together, what must fit between them, and its resolved form as YAML."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PrivateAttr, SerializeAsAny, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from posttrain.config.annotate import ANNOTATED, Annotate
from posttrain.config.collapse import Collapse
from posttrain.config.correction import Correction
from posttrain.config.engine import Compute, Engine
from posttrain.config.kto import Kto
from posttrain.config.model import Model
from posttrain.config.online import Online
from posttrain.config.prompts import Prompts, PromptSet, by_round
from posttrain.config.push import Push
from posttrain.config.quality_classifier import QualityClassifier
from posttrain.config.rewards import RewardEntry
from posttrain.config.sampling import Evaluate, Pairs, Preferences, Samples
from posttrain.config.search import Search
from posttrain.config.section import Count, Section, complain
from posttrain.config.step_reward import StepReward
from posttrain.config.step_scores import StepScores
from posttrain.config.training import TRAINED, Dpo, RewardModel, Sft
from posttrain.config.tree import Path_, Places
from posttrain.config.watch import SECOND, Judge, Watch, as_the_first
from posttrain.errors import did_you_mean

_ADD_OR_NULL = "add `preferences:`, or leave the reward model out by `reward_model: null`"
_ADD_OR_TAKE = "name a reward file that is not `for: preferences`, or add `reward_model:` and `use: reward-model`"


def _filter(entry: Any) -> BaseModel:
    """The filter that `use` names. Its own keys are checked by its class."""
    from posttrain.filters import FILTERS  # here, since it imports pyarrow

    if isinstance(entry, BaseModel):
        return entry
    name = entry.get("use") if isinstance(entry, dict) else None
    known = f"filters are {', '.join(FILTERS)}"
    if not isinstance(name, str):
        complain((), "a filter is a mapping with `use: NAME`", known, rule="recipe-missing-key")
    if name not in FILTERS:
        message = f"unknown filter {name!r}{did_you_mean(name, FILTERS)}"
        complain(("use",), message, known, rule="recipe-unknown-name")
    return FILTERS[name].model_validate(entry)


class Recipe(Section):
    """A whole recipe. `places`: file, line and column of each key, for errors that only show later."""

    _places: Places = PrivateAttr(default_factory=Places)

    name: str = Field(pattern=r"^[^/\\\s.][^/\\]*$")
    """Default: the file's name. Runs go to runs/NAME."""
    model: Model
    """The base model."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """With stage and round it determines all random draws."""
    prompts: Prompts
    """The prompts to train, choose and report on."""
    reward: list[RewardEntry] = Field(min_length=1)
    """The rewards, each with a weight."""
    engine: Engine = Field(default_factory=Engine)
    """The inference engine."""
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(default=[])
    """Trackers that each training and each round reports to; files go to RUN/logs."""
    compute: Compute = Field(default_factory=Compute)
    """How the work is run; changes no result."""
    preferences: Preferences | None = None
    """Preference pairs for the reward model."""
    reward_model: RewardModel | None = None
    """The reward model."""
    samples: Samples
    """The candidates that the filters select from."""
    step_ends: list[Annotated[str, Field(min_length=1)]] = Field(default=["\n"], min_length=1)
    """The texts that end a step of an answer, for `step_scores`, `step_reward` and `search`."""
    annotate: Annotate | None = None
    """Topic, difficulty and pass rate of prompts, as columns of their samples."""
    step_scores: StepScores | None = None
    """A score of each step of a sample, by what the last round trained."""
    step_reward: StepReward | None = None
    """A reward model for steps, from labels that sampling gives."""
    search: Search | None = None
    """A search, step by step, for right answers to prompts that no sample solved."""
    correction: Correction | None = None
    """Wrong answers go back to the policy, with what is said of them."""
    filters: list[Annotated[SerializeAsAny[BaseModel], BeforeValidator(_filter)]] = Field(default=[])
    """The filters of samples, in order: see docs/filters.md."""
    quality_classifier: QualityClassifier | None = None
    """A classifier fitted between rounds for the filter `learned-quality`."""
    collapse: Collapse | None = None
    """Diversity of the kept rows by round, with warnings and a stop rule."""
    sft: Sft | None = None
    """SFT on the rows that the filters kept."""
    online: Online | None = None
    """On-policy training, after SFT: GRPO or RLOO."""
    pairs: Pairs | None = None
    """Pairs sampled from the SFT model, or from what on-policy training made of it."""
    dpo: Dpo | None = None
    """DPO."""
    kto: Kto | None = None
    """KTO, after DPO if both are there."""
    evaluate: Evaluate = Field(default_factory=Evaluate)
    """Figures of each round."""
    promote: Literal["always", "not-worse", "better"] = "better"
    """When a round's policy replaces the last: by a paired test on dev."""
    average_rounds: Count = 1
    """Average a round's policy with the last promoted ones, this many in all; the average is used unless it is worse on
    dev. 1: no average."""
    stop_after: Count | None = None
    """Stop after this many rounds in a row whose policy the test did not show to be better than the last promoted
    one."""
    watch: Watch | None = None
    """A second reward model and win rates, by round."""
    push: Push | None = None
    """Push promoted rounds to the Hub; null: no push."""

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        """The second reward model is as the first; sections without `max_new_tokens` take that of `samples`."""
        if not isinstance(given, dict):
            return given
        given, samples = as_the_first(given), given.get("samples")
        if not isinstance(samples, dict) or "max_new_tokens" not in samples:
            return given
        given = {"evaluate": {}, **given}  # so that it is filled in there too
        if isinstance(given.get("step_reward"), dict) and isinstance(given["step_reward"].get("labels", {}), dict):
            labels = {"max_new_tokens": samples["max_new_tokens"], **given["step_reward"].get("labels", {})}
            given["step_reward"] = {**given["step_reward"], "labels": labels}
        for section in ("preferences", "search", "correction", "pairs", "online", "evaluate"):
            if isinstance(given.get(section), dict):
                given[section] = {"max_new_tokens": samples["max_new_tokens"], **given[section]}
        return given

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_more(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        self._rewards_fit()
        self._watch_fits()
        self._classifier_fits()
        self._balance_fits()
        self._processes_fit()
        self._memorisation_fits()
        self._steps_fit()
        for name in ("search", "correction", "step_reward"):
            if getattr(self, name) and not self.functions():
                complain(
                    (name,),
                    "a reward model alone does not say which answers are right, and nothing else scores them",
                    f"name a reward file that checks answers, or leave this out by `{name}: null`",
                    rule="recipe-no-reward",
                )
        if self.sft and self.sft.mix.real.share and self.prompts.real is None:
            complain(
                ("sft", "mix", "real"),
                "there is no real data to mix in",
                "name it: prompts.real",
                rule="recipe-needs-key",
            )
        lacks = self.engine.lacks()
        for index, one in enumerate(self.filters):
            for need in getattr(one, "needs", ()):
                if need in lacks:
                    said = need.replace("_", " ")
                    complain(
                        ("filters", index),
                        f"it needs {said}, which {lacks[need]} does not give",
                        rule="recipe-engine-lacks",
                    )
        if self.preferences and self.preferences.prompts == 0 and self.preferences.given is None:
            complain(
                ("preferences", "prompts"),
                "no pair is sampled, and none is given",
                "name a set of pairs, preferences.given, or leave the section out by `preferences: null`",
                rule="recipe-nothing-to-do",
            )
        if self.reward_model and not self.preferences:
            complain(
                ("reward_model",),
                "a reward model is trained on preferences, and there are none",
                _ADD_OR_NULL,
                rule="recipe-needs-section",
            )
        if self.dpo:
            for source in self.dpo.pairs_from:
                if source != "samples" and getattr(self, source) is None:
                    complain(
                        ("dpo", "pairs_from"),
                        f"DPO takes pairs from `{source}`, and that section is left out",
                        f"add `{source}:`, name another source, or leave DPO out by `dpo: null`",
                        rule="recipe-needs-section",
                    )
        return self

    def _rewards_fit(self) -> None:
        rewards = [(("reward", index), entry) for index, entry in enumerate(self.reward)]
        measured = [(("evaluate", "measure", index), entry) for index, entry in enumerate(self.evaluate.measure)]
        for loc, entry in measured:
            if entry.is_reward_model or entry.only_for:
                complain(loc, "`measure` takes reward files, without `for`", rule="recipe-belongs")
        names, files = set[str](), dict[str, str]()
        for loc, entry in [*rewards, *measured]:
            _is_told_apart(loc, "rewards", entry, names, files)
            if entry.is_reward_model and (entry.function or entry.only_for):
                complain(loc, "a reward model has neither `function` nor `for`", rule="recipe-belongs")
            if Path(entry.use).name == "reward-model.py":
                complain(loc, "that name is taken", rule="recipe-name-taken")
        scoring = [e for e in self.reward if e.scores and (self.reward_model or not e.is_reward_model)]
        if not scoring:
            complain(("reward",), "no reward is left to score samples", _ADD_OR_TAKE, rule="recipe-no-reward")
        sampled = self.preferences is not None and self.preferences.prompts != 0
        if sampled and not any(entry.labels for entry in self.reward):
            complain(
                ("reward",),
                "no reward is left to label preferences: the reward model learns from those labels",
                rule="recipe-no-reward",
            )

    def _processes_fit(self) -> None:
        """The processes of a training share its micro-batches evenly."""
        processes = self.compute.processes or 1
        for name in TRAINED:
            section = getattr(self, name)
            rows = section.trl["per_device_train_batch_size"] if section and not section.alone else 0
            if rows % processes:
                complain(
                    ("compute", "processes"),
                    f"{processes} processes cannot share the {rows} rows of {name}.per_device_train_batch_size evenly",
                    f"set that to a multiple of {processes}, or this to a divisor of {rows}",
                    rule="recipe-values-clash",
                )

    def _balance_fits(self) -> None:
        balance = self.sft.mix.balance if self.sft else None
        loc = ("sft", "mix", "balance", "by")
        if balance is None:
            return
        if balance.by == "tags":
            complain(
                loc,
                "a prompt has several tags",
                "balance by `intentions`, how many there are, or by `topic`",
                rule="recipe-needs-section",
            )
        if balance.by in ANNOTATED and balance.by not in (self.annotate.columns if self.annotate else []):
            complain(
                loc,
                f"no annotation gives the column {balance.by}",
                f"add `annotate:` with what gives `{balance.by}`",
                rule="recipe-needs-section",
            )

    def _classifier_fits(self) -> None:
        uses = [getattr(one, "use", "") for one in self.filters]
        section = self.quality_classifier
        for index, one in enumerate(self.filters):
            if uses[index] == "learned-quality" and section is None and getattr(one, "model", None) is None:
                hint = "add `quality_classifier: {}`, or name a fitted one by `model`"
                complain(
                    ("filters", index),
                    "the classifier that it reads is not fitted anywhere",
                    hint,
                    rule="recipe-needs-section",
                )
        if section is not None and section.labels is None and not {*section.judged_by} & {*uses}:
            complain(
                ("quality_classifier",),
                f"it learns from the verdicts of {', '.join(section.judged_by)}, and no such filter is there",
                "add one to `filters`, or name people's verdicts by `labels`",
                rule="recipe-needs-section",
            )

    def _steps_fit(self) -> None:
        loc, dpo = ("step_scores",), self.dpo
        if self.step_scores is None:
            for index, one in enumerate(self.filters):
                if getattr(one, "use", None) == "steps":
                    complain(
                        ("filters", index), "no step has a score", "add `step_scores: {}`", rule="recipe-needs-section"
                    )
            return
        if self.step_scores.by == "step_reward":
            if self.step_reward is None:
                complain(
                    (*loc, "by"),
                    "there is no step reward model",
                    "add `step_reward: {}`, or name `dpo`",
                    rule="recipe-needs-section",
                )
            return
        if dpo is None:
            complain(
                loc,
                "steps are scored by DPO's policy and its reference, and there is no DPO",
                "add `dpo:`, or leave steps out by `step_scores: null`",
                rule="recipe-needs-section",
            )
        made = [dpo, *map(dpo.variant, range(len(dpo.variants)))]
        if any({*one.trl["loss_type"]} == {"sft"} for one in made):
            complain(
                loc,
                "steps are scored by how far DPO moved the policy from its reference, and the loss `sft` has none",
                "use another dpo.loss_type",
                rule="recipe-needs-section",
            )
        if any(one.temperature != dpo.temperature for one in made):
            complain(
                loc,
                "steps are scored at the temperature of DPO's loss, and its variants have several",
                "give all of them one dpo.temperature",
                rule="recipe-values-clash",
            )

    def _memorisation_fits(self) -> None:
        section, longest = self.evaluate.memorisation, self.samples.max_new_tokens
        if section is not None and section.n > longest:
            complain(
                ("evaluate", "memorisation", "n"),
                f"no answer that is trained on has {section.n} tokens: samples.max_new_tokens is {longest}",
                f"ask for fewer, such as `n: {max(1, longest // 3)}`",
                rule="recipe-values-clash",
            )

    def _watch_fits(self) -> None:
        if self.watch is None:
            return
        if self.preferences is None:
            complain(
                ("watch",),
                "the second reward model is trained on preferences, and there are none",
                "add `preferences:`, or leave the watch out by `watch: null`",
                rule="recipe-needs-section",
            )
        if self.watch.share + self.preferences.heldout >= 1:
            complain(
                ("watch", "share"),
                f"with preferences.heldout: {self.preferences.heldout} no prompt is left for the reward model",
                "lower one of the two",
                rule="recipe-values-clash",
            )
        files = {Path(entry.use).name: entry.use for entry in [*self.reward, *self.evaluate.measure]}
        names = set[str]()
        for index, judge in enumerate(self.watch.judges or []):
            loc = ("watch", "judges", index)
            _is_told_apart(loc, "judges", judge, names, files)
            if Path(judge.use).name in ("reward-model", "reward-model.py", f"{SECOND}.py"):
                complain(
                    loc,
                    "that name is taken",
                    f"the judge that is a reward model is `{SECOND}`",
                    rule="recipe-name-taken",
                )
            if judge.is_model and judge.function:
                complain(loc, "a reward model has no `function`", rule="recipe-belongs")

    @property
    def places(self) -> Places:
        return self._places

    def placed(self, places: Places) -> Recipe:
        self._places = places
        return self

    def given(self) -> dict[str, list[PromptSet]]:
        """The sets under `given` in sections, by section: one per round, the last repeats."""
        sections = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: by_round(one.given) for name, one in sections.items() if getattr(one, "given", None) is not None}

    def reward_files(self) -> list[RewardEntry]:
        """All rewards that are files, what is only measured too: each but the reward model."""
        return [entry for entry in [*self.reward, *self.evaluate.measure] if not entry.is_reward_model]

    def functions(self) -> list[RewardEntry]:
        """The reward functions and judges that score candidates."""
        return [entry for entry in self.reward if entry.scores and not entry.is_reward_model]

    def judges(self) -> list[Judge]:
        """The judges of the watch."""
        if self.watch is None:
            return []
        functions = [Judge(use=entry.use, function=entry.function) for entry in self.functions() if entry.compares]
        return self.watch.judges or [Judge(use=SECOND), *functions]

    def dump(self) -> str:
        """The recipe as YAML with all defaults; loading it gives an equal recipe."""
        text = yaml_text(self.model_dump(mode="json", by_alias=True))
        return "# The recipe as resolved, every default written out.\n" + text


class _Representer(SafeRepresenter):
    def text(self, value: str) -> Any:
        """Escaped where it holds more than plain characters: ruamel reads some line breaks back as spaces."""
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')


_Representer.add_representer(str, _Representer.text)


def yaml_text(value: Any) -> str:
    """A JSON value as YAML, a key a line, in the order of its keys."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 1 << 30  # a folded line does not always come back as it was
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def _is_told_apart(loc: Path_, what: str, entry: RewardEntry | Judge, names: set[str], files: dict[str, str]) -> None:
    """Refuses an entry that is called as an earlier one, or whose file is called as another one's; adds it to both."""
    if entry.name in names:
        hint = "rename a file, or take one entry out"
        complain(loc, f"two {what} are called {entry.name!r}", hint, rule="recipe-name-taken")
    names.add(entry.name)
    file = Path(entry.use).name
    if files.setdefault(file, entry.use) != entry.use:
        complain(loc, f"two reward files are called {file!r}", rule="recipe-name-taken")
