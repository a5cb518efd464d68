"""The sections of what is not trained: models, prompts, rewards, samples, pairs, evaluation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config.benchmark import NamedBenchmark
from posttrain.config.forecast import Forecast
from posttrain.config.label_variants import LabelVariants
from posttrain.config.memorisation import Memorisation
from posttrain.config.prompts import ByRound
from posttrain.config.rewards import RewardEntry
from posttrain.config.section import (
    MOST,
    Count,
    Few,
    Real,
    Section,
    Share,
    Temperature,
    Tokens,
    Whole,
    complain,
    of_round,
)

Level = Literal["significantly_better", "better", "slightly_better", "marginally_better"]


class Levels(Section):
    """Lower bounds of the reward margin of each level; above 0 a pair is marginally better."""

    significantly_better: float = Field(default=0.75, gt=0, le=MOST)
    """Margin from which a pair is significantly better."""
    better: float = Field(default=0.5, gt=0, le=MOST)
    """Margin from which it is better."""
    slightly_better: float = Field(default=0.25, gt=0, le=MOST)
    """Margin from which it is slightly better."""

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
    """Preference pairs: answers of the current and the previous policy, labelled by the rewards; and given pairs."""

    given_as: ClassVar[str] = "preferences"  # how `posttrain.data.load.GIVEN` reads what is given

    prompts: int | None = Field(default=None, ge=0, le=MOST)
    """Prompts per round; null: all; 0: none, `given` has all the pairs."""
    given: ByRound | None = None
    """Pairs labelled by people, added to the sampled ones: a set with prompt, chosen and rejected, and optionally
    edited (ranks above chosen) and level. A list: one set per round, the last repeats. See docs/data.md."""
    where: dict[str, str | Whole | Real | bool | None] = Field(default={})
    """Only prompts with these column values, as in {answer: null} for prompts that no verifier can check."""
    k: int = Field(default=2, ge=2, le=10_000)
    """Answers of each policy to a prompt."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    max_new_tokens: Tokens = 256
    """Longest answer, in tokens. Default: samples.max_new_tokens."""
    heldout: Share = 0.15
    """Share of prompts held out from training, to evaluate the reward model on."""
    levels: Levels = Field(default_factory=Levels)
    """The four-level scale."""
    keep: list[Level] = Field(default=["significantly_better", "better"], min_length=1)
    """Levels of the pairs that are kept."""


class Difficulty(Section):
    """Prompts by difficulty: of a pool, those whose pass rate with the last policy is nearest to the round's target."""

    pass_rate: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1)
    """The target pass rate by round; the last repeats."""
    pool: float = Field(default=2.0, gt=1, le=MOST)
    """Size of the pool: a multiple of the round's prompts."""
    k: Few = 4
    """Answers to each prompt of the pool."""


class Samples(Section):
    """The candidates: K answers of the policy to each prompt."""

    prompts: Count | None = None
    """Prompts per round; null: all."""
    k: Few = 8
    """Answers to each prompt."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus: the smallest set of tokens with this probability."""
    max_new_tokens: Tokens = 256
    """Longest answer, in tokens."""
    system: list[str | None] = Field(default=[])
    """System messages by round, the last repeats. Samples are drawn with them and trained on without them, so that the
    policy learns what they ask for. A prompt's own system message stays."""
    hint: str | None = Field(default=None, min_length=1)
    """A column of the training prompts with a text that stands below the prompt while it is answered, and is not
    trained on: how to do what the prompt asks for. A row with null has none."""

    difficulty: Difficulty | None = None
    """Select prompts by pass rate; null: in order."""

    def steering(self, number: int) -> str | None:
        """The system message of round `number`, from 1 on."""
        return of_round(self.system, number) if self.system else None

    @model_validator(mode="after")
    def _pool_of_some(self) -> Samples:
        if self.difficulty and self.prompts is None:
            complain(
                ("difficulty",),
                "with all prompts in every round there are none to select",
                "set samples.prompts",
                rule="recipe-needs-key",
            )
        return self


class Pairs(Section):
    """Pairs of the best and the worst of K answers of the round's SFT model."""

    prompts: Count | None = None
    """Prompts per round; null: all."""
    k: int = Field(default=8, ge=2, le=10_000)
    """Answers to each prompt."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    max_new_tokens: Tokens = 256
    """Longest answer, in tokens. Default: samples.max_new_tokens."""
    margin: float = Field(default=0.0, ge=0, le=MOST)
    """The best answer's score must exceed the worst's by this or more."""


class Evaluate(Section):
    """Figures of each round on dev and heldout: one greedy answer, and k sampled ones."""

    k: Few = 8
    """Sampled answers to each prompt, for pass@1 and pass@k."""
    temperature: Temperature = 1.0
    """Their sampling temperature."""
    max_new_tokens: Tokens = 256
    """Longest answer, in tokens. Default: samples.max_new_tokens."""
    measure: list[RewardEntry] = Field(default=[])
    """Rewards that are only reported: no stage learns from them."""
    benchmarks: list[NamedBenchmark] = Field(default=[])
    """Benchmarks of lm-evaluation-harness, for the base and each round's policy. Only reported, in the background:
    nothing is chosen by them. Each is a name, a task file, or a mapping."""

    label_variants: LabelVariants | None = None
    """Whether answers to multiple-choice questions depend on how these are put; null: not looked at."""
    memorisation: Memorisation | None = None
    """How much of SFT's rows the policy has by heart; null: not looked at."""
    forecast: Forecast | None = None
    """What the accuracy of later rounds will be; null: no forecast."""

    @model_validator(mode="after")
    def _benchmarks_differ(self) -> Evaluate:
        names = [one.name for one in self.benchmarks]
        for index, name in enumerate(names):
            if name in names[:index]:
                complain(("benchmarks", index), f"there are two benchmarks {name}", rule="recipe-name-taken")
        return self
