"""The sections of what is not trained: models, prompts, rewards, samples, pairs, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from posttrain.recipe.judge_model import JudgeModel
from posttrain.recipe.keys import KeyedByName, KeyedUnlessDefault, NotInKey
from posttrain.recipe.section import MOST, Count, Few, Real, Section, Share, Temperature, Tokens, Whole, complain
from posttrain.schedule import of_round

Level = Literal["significantly_better", "better", "slightly_better", "marginally_better"]


class Lora(Section):
    """LoRA instead of full fine-tuning; the names are peft's."""

    r: Count = Field(default=16, description="Rank of the adapters.")
    lora_alpha: float = Field(default=32, gt=0, le=MOST, description="Scale of the adapters: lora_alpha / r.")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapters.")
    target_modules: str | list[str] = Field(default="all-linear", description="Which layers get an adapter.")
    adapters: Annotated[Literal["merge", "keep"], KeyedUnlessDefault()] = Field(
        default="merge",
        description="`merge`: the artifact is the merged model; `keep`: with the adapter beside it, in `adapter/`.",
    )
    load_in_4bit: Annotated[bool, KeyedUnlessDefault()] = Field(
        default=False,
        description="QLoRA: the model that is trained is held in 4 bits (NF4). Needs bitsandbytes and a CUDA GPU.",
    )


class Model(Section):
    """The base model. Everything starts from it in round 1. Its content is an external hash."""

    path: Annotated[str, NotInKey()] = Field(
        description="A shipped name, a folder (with a slash), or a Hub id such as `owner/name`."
    )
    revision: Annotated[str | None, NotInKey()] = Field(default=None, description="Branch, tag or commit of a Hub id.")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Type in which models are saved.")
    lora: Lora | None = Field(default=None, description="LoRA adapters instead of full fine-tuning.")
    chat_template: Annotated[str | None, NotInKey()] = Field(
        default=None,
        description="In place of the model's own: the name of one that it brings, or a file (with a slash). What is "
        "trained carries it.",
    )

    refused: ClassVar[dict[str, str]] = {
        "trust_remote_code": "no code that comes with a model is run; choose an architecture that transformers has"
    }
    renamed: ClassVar[dict[str, str]] = {"name": "path", "torch_dtype": "dtype", "model_name_or_path": "path"}


class PromptSet(Section):
    """One set of prompts: a file of ours or yours (`path`), or a data set of the Hub (`dataset_name`)."""

    path: str | None = Field(
        default=None, description="A JSONL, Parquet or CSV file: a shipped name, or a path with a slash."
    )
    dataset_name: str | None = Field(default=None, description="A data set of the Hub.")
    name: str | None = Field(default=None, description="Its configuration, as in `load_dataset(path, name)`.")
    revision: str | None = Field(default=None, description="Its branch, tag or commit.")
    split: str | None = Field(default=None, description="Its split; slices such as `train[:-500]` are understood.")
    columns: dict[str, str | Annotated[list[str], Field(min_length=1)] | None] = Field(
        default={},
        description="Our column names to theirs, as in {prompt: question}; a list joins several texts, null leaves a "
        "column out. What is read without it: docs/data.md.",
    )
    rows: str | None = Field(
        default=None, pattern=r"^-?\d*:-?\d*$", description="A slice of the rows, as in `:-500`; null: all of them."
    )

    @model_validator(mode="after")
    def _one_source(self) -> PromptSet:
        if (self.path is None) == (self.dataset_name is None):
            complain((), "a prompt set needs either `path` or `dataset_name`", rule="recipe-one-of")
        for key in ("name", "revision", "split"):
            if self.path is not None and getattr(self, key) is not None:
                complain(
                    (key,),
                    f"{key!r} belongs to `dataset_name`, not to `path`",
                    "`rows: ':-500'` cuts a file",
                    rule="recipe-belongs",
                )
        if self.dataset_name is not None and self.split is None:
            complain(
                ("dataset_name",), "`dataset_name` needs a `split`", "for example split: train", rule="recipe-needs-key"
            )
        return self


_SETS = TypeAdapter(Annotated[list[PromptSet], Field(min_length=1)])


def _one_or_by_round(given: Any) -> Any:
    """Checked here, so that what is wrong is told at its key: a union would say which of its members it tried."""
    if given is None or isinstance(given, PromptSet):
        return given
    return _SETS.validate_python(given) if isinstance(given, list) else PromptSet.model_validate(given)


# One set for all rounds, or a list: round N takes from the Nth, and the last goes on.
ByRound = Annotated[PromptSet | list[PromptSet], BeforeValidator(_one_or_by_round)]


def by_round(sets: PromptSet | list[PromptSet] | None) -> list[PromptSet]:
    """The sets of a key that takes one or a list; none where it is null."""
    return sets if isinstance(sets, list) else [] if sets is None else [sets]


class Decontaminate(Section):
    """Which training prompts are too near to what is evaluated on: see the filter `overlap`."""

    n: Few = Field(default=8, description="Tokens in an n-gram.")
    max_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Largest share of an evaluation prompt that may stand in a training prompt.",
    )


class Prompts(Section):
    """The prompts. Every choice inside a run is made on `dev`, and on `heldout` never."""

    train: ByRound = Field(
        description="What the policy answers and learns from. A list: round N takes from the Nth set, the last goes "
        "on. No prompt of a set comes again before all of it was used."
    )
    dev: PromptSet = Field(description="What promotion and every other choice is made on.")
    heldout: PromptSet = Field(description="What is only ever reported.")
    against: list[PromptSet] = Field(
        default=[],
        description="Further evaluation sets. What they ask is kept out of training; nothing is measured on them.",
    )
    real: PromptSet | None = Field(
        default=None,
        description="Prompts with a column `completion` that no model wrote, for sft.mix.real. What is evaluated on is "
        "left out of them as out of `train`.",
    )
    decontaminate: Decontaminate | None = Field(
        default=None,
        description="Leave out training prompts that hold much of one that is evaluated on. The same ones are left out "
        "in any case.",
    )
    too_long: Literal["stop", "drop"] = Field(
        default="stop",
        description="A prompt that leaves no room for an answer in the model's context: stop, or drop and count.",
    )
    system: str | None = Field(default=None, description="A system message for prompts that have none of their own.")


class RewardEntry(Section):
    """One reward: a function in a file, the round's reward model, or a judge with a rubric."""

    use: Annotated[str, KeyedByName()] = Field(
        description="`reward-model`, a shipped reward file, or a path with a slash; a rubric ends with .md."
    )
    function: str | None = Field(default=None, description="Which function of the file; null: the only public one.")
    weight: float = Field(
        default=1.0, gt=0, le=MOST, description="Weight in the mean of the rewards that have an opinion on a row."
    )
    only_for: Literal["preferences", "scores"] | None = Field(
        default=None,
        alias="for",
        description="`preferences`: asked only when pairs are labelled; `scores`: only when candidates are scored.",
    )
    judge: Annotated[JudgeModel | None, KeyedUnlessDefault()] = Field(
        default=None, description="Who judges by the rubric; its score, scaled to 0 to 1, is the reward."
    )

    @model_validator(mode="after")
    def _rubric_and_judge(self) -> RewardEntry:
        if self.use.endswith(".md") and self.judge is None:
            complain(
                ("use",),
                "who judges by this rubric is not said",
                "add `judge: {url: …, model: …}` beside it",
                rule="recipe-needs-key",
            )
        if self.judge is not None and not self.use.endswith(".md"):
            complain(("judge",), "a judge judges by a rubric, and those end with .md", rule="recipe-belongs")
        if self.judge is not None and self.function is not None:
            complain(("function",), "a rubric has no functions", rule="recipe-belongs")
        return self

    @property
    def is_reward_model(self) -> bool:
        return self.use == "reward-model"

    @property
    def scores(self) -> bool:
        """Whether it is asked about candidates."""
        return self.only_for != "preferences"

    @property
    def labels(self) -> bool:
        """Whether it is asked about pairs; the reward model learns from those labels, so it gives none."""
        return self.only_for != "scores" and not self.is_reward_model

    @property
    def name(self) -> str:
        """What its figures are called: the file's stem, and the function where one is named."""
        stem = Path(self.use).name.removesuffix(".md" if self.judge else ".py")
        return f"{stem}.{self.function}" if self.function else stem


class Levels(Section):
    """Lower bounds of the reward margin of each level; above 0 a pair is marginally better."""

    significantly_better: float = Field(
        default=0.75, gt=0, le=MOST, description="Margin from which a pair is significantly better."
    )
    better: float = Field(default=0.5, gt=0, le=MOST, description="Margin from which it is better.")
    slightly_better: float = Field(default=0.25, gt=0, le=MOST, description="Margin from which it is slightly better.")

    @model_validator(mode="after")
    def _descending(self) -> Levels:
        if not self.significantly_better >= self.better >= self.slightly_better:
            complain(
                (),
                "the levels must descend: significantly_better >= better >= slightly_better",
                rule="recipe-values-clash",
            )
        return self


class Preferences(Section):
    """Preference pairs: answers of the current and the previous policy, labelled by the rewards; and pairs given."""

    prompts: int | None = Field(
        default=None, ge=0, le=MOST, description="Prompts per round; null: all; 0: none, `given` has all the pairs."
    )
    given: ByRound | None = Field(
        default=None,
        description="Pairs that people labelled, beside those sampled: a set with prompt, chosen and rejected, and "
        "where there are any edited (ranks above chosen) and level. A list: by round, the last goes on. See "
        "docs/data.md.",
    )
    where: dict[str, str | Whole | Real | bool | None] = Field(
        default={},
        description="Only prompts with these values in their columns, as in {answer: null} for those that nobody can "
        "check: answers to others would be sampled for nothing.",
    )
    k: int = Field(default=2, ge=2, le=10_000, description="Answers of each policy to a prompt.")
    temperature: Temperature = Field(default=1.0, description="Sampling temperature.")
    max_new_tokens: Tokens = Field(
        default=256, description="Longest answer, in tokens. Default: samples.max_new_tokens."
    )
    heldout: Share = Field(
        default=0.15, description="Share of prompts kept from training, to measure the reward model on."
    )
    levels: Levels = Field(default_factory=Levels, description="The four-level scale.")
    keep: list[Level] = Field(
        default=["significantly_better", "better"], min_length=1, description="Levels of the pairs that are kept."
    )


class Difficulty(Section):
    """Prompts that grow harder: of a pool, those whose pass rate with the last policy is nearest to the round's."""

    pass_rate: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        min_length=1, description="The pass rate that is wanted, by round; the last goes on."
    )
    pool: float = Field(default=2.0, gt=1, le=MOST, description="So many times the round's prompts are tried.")
    k: Few = Field(default=4, description="Answers to each of them.")

    def wanted(self, number: int) -> float:
        """The pass rate of round `number`, from 1 on."""
        return of_round(self.pass_rate, number)


class Samples(Section):
    """K answers to each prompt, from the policy, to choose from."""

    prompts: Count | None = Field(default=None, description="Prompts per round; null: all.")
    k: Few = Field(default=8, description="Answers to each prompt.")
    temperature: Temperature = Field(default=1.0, description="Sampling temperature.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Nucleus: the smallest set of tokens with this probability."
    )
    max_new_tokens: Tokens = Field(default=256, description="Longest answer, in tokens.")
    system: list[str | None] = Field(
        default=[],
        description="System messages by round, the last goes on. Samples are drawn under them and trained on without "
        "them, so that what they ask for is learned. A prompt's own system message stays.",
    )

    difficulty: Difficulty | None = Field(default=None, description="Prompts by pass rate; null: as they come.")

    def steering(self, number: int) -> str | None:
        """The system message of round `number`, from 1 on."""
        return of_round(self.system, number) if self.system else None

    @model_validator(mode="after")
    def _pool_of_some(self) -> Samples:
        if self.difficulty and self.prompts is None:
            complain(
                ("difficulty",),
                "all prompts in every round leave nothing to choose",
                "set samples.prompts",
                rule="recipe-needs-key",
            )
        return self


class Pairs(Section):
    """Best and worst of K answers of the policy that SFT has just made."""

    prompts: Count | None = Field(default=None, description="Prompts per round; null: all.")
    k: int = Field(default=8, ge=2, le=10_000, description="Answers to each prompt.")
    temperature: Temperature = Field(default=1.0, description="Sampling temperature.")
    max_new_tokens: Tokens = Field(
        default=256, description="Longest answer, in tokens. Default: samples.max_new_tokens."
    )
    margin: float = Field(
        default=0.0, ge=0, le=MOST, description="The best answer's score must exceed the worst's by this or more."
    )


class Evaluate(Section):
    """Figures of each round on dev and heldout: one greedy answer, and k sampled ones."""

    k: Few = Field(default=8, description="Sampled answers to each prompt, for pass@1 and pass@k.")
    temperature: Temperature = Field(default=1.0, description="Their sampling temperature.")
    max_new_tokens: Tokens = Field(
        default=256, description="Longest answer, in tokens. Default: samples.max_new_tokens."
    )
    measure: list[RewardEntry] = Field(
        default=[], description="Rewards that are only measured: no stage learns from them."
    )
