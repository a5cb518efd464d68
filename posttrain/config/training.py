"""The sections of the trained stages: a few keys of ours, plus TRL's fields under their own names."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config import trl_fields
from posttrain.config.keys import KeyedUnlessDefault
from posttrain.config.kto import Kto
from posttrain.config.online import RLOO, Online
from posttrain.config.section import MOST, Count, Few, Section, Share, Temperature, complain
from posttrain.config.step_reward import StepReward
from posttrain.config.trained import Trained
from posttrain.errors import did_you_mean

PairSource = Literal["preferences", "samples", "pairs", "search", "correction"]


class RewardModel(Trained):
    """The reward model, trained in each round; plus RewardConfig's fields."""

    trainer, trl_config = "reward_model", "RewardConfig"
    made_with = ("packed",)

    start: Literal["base", "previous"] = "base"
    """From the base model, or the last reward model."""
    preferences: Literal["all", "latest"] = "all"
    """Trained on the preferences of all rounds so far, or of this one."""
    packed: bool = True
    """Pack a prompt and its responses into one row, if the model gives the same so (see models.md)."""
    margin: Literal["none", "llama2"] = "none"
    """Margin in the loss by preference level: none, or Llama 2's 1, 2/3, 1/3, 0."""
    max_similarity: float | None = Field(default=None, gt=0, le=1)
    """Drop pairs whose answers have this similarity or more, in [0, 1]; null: keep all."""


class Source(Section):
    """The part of one source of SFT data in the mix."""

    share: float = Field(default=1.0, ge=0, le=1)
    """Share of its rows, drawn at random; 0 leaves the source out."""
    repeats: Few = 1
    """Times that each of its rows is repeated in an epoch."""


class Balance(Section):
    """The share of each topic, source or difficulty: frequent values are downsampled, rare ones repeated."""

    by: str
    """A column of the prompts, such as `source`, or one of `annotate`: `topic`, `difficulty`, `intentions`, `pass_rate`
    (as easy, medium, hard, by thirds)."""
    shares: Literal["equal"] | dict[str, Annotated[float, Field(ge=0, le=1)]] = "equal"
    """By value, as in {hard: 0.5}; `null` names rows without one. Other values split the rest in proportion. `equal`:
    the same share for each value."""
    max_repeats: Few = 4
    """Most repeats of a row in an epoch for its share."""

    @field_validator("shares", mode="before")
    @classmethod
    def _named_by_text(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {"null" if value is None else str(value): share for value, share in given.items()}

    @model_validator(mode="after")
    def _shares_of_one(self) -> Balance:
        shares = {} if self.shares == "equal" else self.shares
        if sum(shares.values()) > 1 + 1e-9:
            complain(("shares",), "shares lie between 0 and 1 and add up to 1 at most", rule="recipe-values-clash")
        if self.shares != "equal" and not any(shares.values()):
            complain(("shares",), "all shares are 0", "shares: equal", rule="recipe-nothing-to-do")
        return self


class Real(Section):
    """Real data, not written by a model, from `prompts.real`."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of an epoch's rows, drawn anew each round; repeated if there are fewer."""


class Mix(Section):
    """The mix of SFT data, by source."""

    fresh: Source = Field(default_factory=Source)
    """Rows that the filters kept in this round, without those below."""
    earlier: Source = Field(default_factory=lambda: Source(share=0.0))
    """Rows that they kept in earlier rounds."""
    searched: Annotated[Source, KeyedUnlessDefault()] = Field(default_factory=Source)
    """Those of this round's kept rows that `search` found."""
    corrected: Annotated[Source, KeyedUnlessDefault()] = Field(default_factory=Source)
    """Those that `correction` found."""
    balance: Annotated[Balance | None, KeyedUnlessDefault()] = None
    """Shares by topic, source or difficulty; null: unchanged."""
    real: Annotated[Real, KeyedUnlessDefault()] = Field(default_factory=Real)
    """Real data, which guards against collapse."""


class Anneal(Section):
    """Annealing: the last part of SFT uses only the best data (Llama 3, section 3.4.3, does so in pre-training)."""

    steps: Share = 0.2
    """Share of the steps, at the end."""
    best: Share = 0.25
    """Share of the rows to use then, the best by score."""
    from_round: Count = 1
    """First round with annealing."""


class Sft(Trained):
    """SFT on the samples that the filters kept, prompts masked; plus SFTConfig's fields."""

    trainer, trl_config = "sft", "SFTConfig"
    made_with = ("temperature",)
    refused: ClassVar = {"assistant_only_loss": "the prompt is always masked and only the answer is trained on"}

    start: Literal["previous", "base"] = "previous"
    """From the previous policy, or the base model."""
    mix: Mix = Field(default_factory=Mix)
    """The mix of data."""
    anneal: Anneal | None = None
    """Use the best data last; null: no annealing."""
    temperature: Annotated[Temperature, KeyedUnlessDefault()] = 1.0
    """Temperature of the policy in the loss. That of `samples`, where it is below 1, keeps the policy from growing
    surer of everything from round to round."""

    @model_validator(mode="after")
    def _packs_whole_examples(self) -> Sft:
        if not self.trl.get("packing"):
            return self
        if self.trl.get("max_length") is None:
            complain(
                ("packing",),
                "packing needs `max_length`, the number of tokens in a row",
                "set sft.max_length",
                rule="recipe-needs-key",
            )
        if self.trl.get("packing_strategy") == "wrapped":
            complain(
                ("packing_strategy",),
                "with `wrapped`, examples attend to one another",
                "use bfd, the default",
                rule="recipe-packing",
            )
        if self.anneal:
            complain(
                ("packing",),
                "`anneal` depends on the order of the rows, and packing changes it",
                rule="recipe-packing",
            )
        return self


REFERENCES = ("start", "initial", "previous", "averaged")


class Dpo(Trained):
    """DPO on pairs, from the SFT model; plus DPOConfig's fields."""

    trainer, trl_config = "dpo", "DPOConfig"
    refused: ClassVar = {
        **trl_fields.FIXED_REFERENCE,
        "label_smoothing": "TRL ignores it for the sigmoid loss",
    }
    shown = ("beta", "loss_type")
    made_with = ("packed", "mask_format", "nll_weight", "temperature")
    one_or_more = ("pairs_from",)

    pairs_from: list[PairSource] = Field(default=["pairs"], min_length=1)
    """Sources of pairs: `pairs` (from the SFT model), `samples` (best and worst of the round's K), `preferences`,
    `search` (what it found, over a wrong answer that begins alike), `correction` (the right answer over the wrong one);
    one, or a list."""
    margin: float = Field(default=0.0, ge=0, le=MOST)
    """For the source `samples`: the best of K must exceed the worst in score by this or more."""
    preferences: Literal["latest", "all"] = "latest"
    """For the source `preferences`: those of this round, or of all rounds so far."""
    reference: str = "start"
    """The reference policy: `start` (what DPO starts from), `initial` (the recipe's model), `previous` (the last
    promoted policy), `averaged` (the mean of all promoted so far), or the path of a model folder."""
    packed: bool = True
    """Pack a prompt and its two answers into one row, if the model gives the same so (see models.md)."""
    mask_format: bool = True
    """Mask the template's tokens after an answer in the preference loss."""
    nll_weight: float = Field(default=0.2, ge=0, le=MOST)
    """Weight of the chosen answer's negative log-likelihood, added to the DPO loss."""
    temperature: Annotated[Temperature, KeyedUnlessDefault()] = 1.0
    """Temperature of policy and reference in the loss, as `sft.temperature`."""

    @property
    def sources(self) -> list[str]:
        return list(self.pairs_from)

    @field_validator("reference")
    @classmethod
    def _name_or_path(cls, given: str) -> str:
        if given not in REFERENCES and "/" not in given:
            complain(
                (),
                f"no reference is called {given!r}{did_you_mean(given, REFERENCES)}",
                "a folder has a slash",
                rule="recipe-unknown-name",
            )
        return given


# The trained stages by name, in the order of the loop.
TRAINED: dict[str, type[Trained]] = {kind.trainer: kind for kind in (RewardModel, StepReward, Sft, Online, Dpo, Kto)}
# TRL's classes by the names that `trl_fields` has for their fields.
TRL_CONFIGS = {**{name: kind.trl_config for name, kind in TRAINED.items()}, RLOO: "RLOOConfig"}

if __name__ == "__main__":
    trl_fields.write(TRL_CONFIGS)
