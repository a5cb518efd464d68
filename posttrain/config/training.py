"""The sections of the trained stages: a few keys of ours, plus TRL's fields under their own names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from posttrain.config import trl_fields
from posttrain.config.keys import KeyedUnlessDefault, NotInKey
from posttrain.config.prompts import ByRound
from posttrain.config.section import MOST, Count, Few, Section, Share, below, complain
from posttrain.errors import did_you_mean

PairSource = Literal["preferences", "samples", "pairs"]


# Micro-batch and accumulation count only as their product.
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


class Trained(Section):
    """A trained stage: a few keys of ours, plus TRL's fields under their own names.

    A subclass says all that other modules must know of it, and stands in `TRAINED`. `trainer`: the stage's name;
    `trl_config`: TRL's class of its fields; `refused`: those of them that it may not set, and why, beside
    `trl_fields.REFUSED`; `shown`: those that are written out beside `trl_fields.SHOWN`; `made_with`: our keys that its
    trainer is made with; `one_or_more`: our lists that may be written as one of their items.
    """

    model_config = ConfigDict(extra="allow")
    trainer: ClassVar[str]
    trl_config: ClassVar[str]
    shown: ClassVar[tuple[str, ...]] = ()
    made_with: ClassVar[tuple[str, ...]] = ()
    one_or_more: ClassVar[tuple[str, ...]] = ()
    variants: Annotated[list[dict[str, Any]], NotInKey()] = Field(default=[])  # each is a stage of its own
    """Each is this section with these keys changed, and a `seed` (default 0). All are trained and their weights
    averaged; the average is used, or the best variant if that is better on dev."""

    @model_validator(mode="before")
    @classmethod
    def _shown_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = trl_fields.fields(cls.trainer)
        shown = {key: known[key]["default"] for key in (*trl_fields.SHOWN, *cls.shown)}
        lists = {key: [given[key]] for key in cls.one_or_more if isinstance(given.get(key), str)}
        return {key: _as_typed(known.get(key), value) for key, value in {**shown, **given, **lists}.items()}

    @classmethod
    def _unknown(cls, key: str, value: Any, known: list[str]) -> None:
        wrong = trl_fields.problem(cls.trainer, key, value, tuple(known), cls.refused)
        if wrong:
            complain((key,), wrong.message, rule=wrong.rule)

    @model_validator(mode="after")
    def _variants_fit(self) -> Trained:
        for index, changes in enumerate(self.variants):
            seed = changes.get("seed", 0)
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
                complain(
                    ("variants", index, "seed"), "a variant's seed is a whole number from 0 up", rule="recipe-variant"
                )
            for key in ("variants", "reference", "given"):
                if key in changes:
                    complain(("variants", index, key), f"{key!r} is the same for all variants", rule="recipe-variant")
            try:
                self.variant(index)
            except ValidationError as error:
                raise below(("variants", index), error) from None
        return self

    def variant(self, index: int) -> Self:
        """The section of one variant. Its seed is not in it: see `variant_seed`."""
        changes = {key: value for key, value in self.variants[index].items() if key != "seed"}
        return type(self).model_validate(_changed(self.model_dump(by_alias=True, exclude={"variants"}), changes))

    def variant_seed(self, index: int) -> int:
        return self.variants[index].get("seed", 0)

    @property
    def sources(self) -> list[str]:
        """The tables of a round that the stage learns from, where the recipe says which."""
        return []

    @property
    def trl(self) -> dict[str, Any]:
        """TRL's fields: those that the recipe sets, and the defaults that are always written out."""
        return dict(self.model_extra or {})

    def divided(self, exclude: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in every section; of TRL's fields those that decide a result, and the rows of a step as `batch`."""
        keyed, rest = super().divided(exclude)
        how = {*trl_fields.HOW_ONLY, *_BATCH}
        micro, accumulation = (keyed[name] for name in _BATCH)
        keyed = {key: value for key, value in keyed.items() if key not in how}
        rest |= {key: value for key, value in self.trl.items() if key in how}
        return {**keyed, "batch": micro * accumulation}, rest

    @classmethod
    def restored(cls, in_key: Mapping[str, Any], not_in_key: Mapping[str, Any] | None = None) -> Self:
        return super().restored({key: value for key, value in in_key.items() if key != "batch"}, not_in_key)


def _changed(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The section with these keys changed, key by key in mappings below, as a recipe that `extends` another has it."""
    below = {
        key: _changed(section[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(section.get(key), dict)
    }
    return {**section, **changes, **below}


def _as_typed(field: dict[str, Any] | None, value: Any) -> Any:
    """One form for one meaning, so that `2` and `2.0` epochs, or `sigmoid` and `[sigmoid]`, give one key."""
    if field and field["types"] == ["array"] and isinstance(value, str):
        return [value]
    if field and "number" in field["types"] and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


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
        if any(not 0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
            complain(("shares",), "shares lie between 0 and 1 and add up to 1 at most", rule="recipe-values-clash")
        if self.shares != "equal" and not any(shares.values()):
            complain(("shares",), "no value has a share", "shares: equal", rule="recipe-nothing-to-do")
        return self


class Real(Section):
    """Real data, not written by a model, from `prompts.real`."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of an epoch's rows, drawn anew each round; repeated if there are fewer."""


class Mix(Section):
    """The mix of SFT data, by source."""

    fresh: Source = Field(default_factory=Source)
    """Rows that the filters kept in this round."""
    earlier: Source = Field(default_factory=lambda: Source(share=0.0))
    """Rows that they kept in earlier rounds."""
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
    refused: ClassVar = {"assistant_only_loss": "the prompt is always masked and only the answer is trained on"}

    start: Literal["previous", "base"] = "previous"
    """From the previous policy, or the base model."""
    mix: Mix = Field(default_factory=Mix)
    """The mix of data."""
    anneal: Anneal | None = None
    """Use the best data last; null: no annealing."""

    @model_validator(mode="after")
    def _packs_whole_examples(self) -> Sft:
        if not self.trl.get("packing"):
            return self
        if self.trl.get("max_length") is None:
            complain(
                ("packing",),
                "packing fills rows of `max_length` tokens, and that is not set",
                "set sft.max_length",
                rule="recipe-needs-key",
            )
        if self.trl.get("packing_strategy") == "wrapped":
            complain(
                ("packing_strategy",),
                "`wrapped` lets examples see each other",
                "use bfd, the default",
                rule="recipe-packing",
            )
        if self.anneal:
            complain(
                ("packing",),
                "with `anneal` the order of the rows counts, and packing changes it",
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
    made_with = ("packed", "mask_format", "nll_weight")
    one_or_more = ("pairs_from",)

    pairs_from: list[PairSource] = Field(default=["pairs"], min_length=1)
    """Sources of pairs: `pairs` (from the SFT model), `samples` (best and worst of the round's K), `preferences`; one,
    or a list."""
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


Score = Annotated[float, Field(ge=-MOST, le=MOST)]


class Threshold(Section):
    """Thresholds of good and bad scores; answers between the two are dropped and counted."""

    good: Score
    """Lowest score of a good answer."""
    bad: Score
    """Highest score of a bad answer, if it is not good."""

    @model_validator(mode="after")
    def _in_order(self) -> Threshold:
        if self.bad > self.good:
            complain(("bad",), "an answer cannot be bad from above what is good", rule="recipe-values-clash")
        return self


def _one_or_two(given: Any) -> Any:
    """One number is both thresholds. Validated here, so that errors name the key."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        given = {"good": given, "bad": given}
    return Threshold.model_validate(given) if isinstance(given, dict) else given


class Kto(Trained):
    """KTO on single answers, good or bad, from the DPO (or else SFT) model, which is its reference too; plus
    KTOConfig's fields."""

    trainer, trl_config = "kto", "KTOConfig"
    refused: ClassVar = {
        **trl_fields.FIXED_REFERENCE,
        "precompute_ref_log_probs": "the reference is the policy as the stage begins: it is asked once, before",
        "train_sampling_strategy": "rows are shuffled by the recipe's seed; each is paired with one of its step",
    }
    shown = ("beta", "loss_type", "desirable_weight", "undesirable_weight")
    one_or_more = ("rows_from",)
    given_as: ClassVar[str] = "labelled"

    rows_from: list[Literal["samples", "given"]] = Field(default=["samples"], min_length=1)
    """Sources of answers: `samples` (good and bad by `threshold`), `given`; one, or a list."""
    given: Annotated[ByRound | None, NotInKey()] = None  # its content is an external hash
    """Answers labelled good or bad by people: a set with prompt, completion and label. A list: one set per round, the
    last repeats. See docs/data.md."""
    threshold: Annotated[Score | Threshold, BeforeValidator(_one_or_two)] = Field(
        default_factory=lambda: Threshold(good=0.5, bad=0.5)
    )
    """For the source `samples`: which scores are good and which bad. One number: good from it on, bad below; `{good,
    bad}`: scores between are dropped."""

    @model_validator(mode="after")
    def _fits(self) -> Kto:
        if ("given" in self.rows_from) != (self.given is not None):
            message = "nothing reads these rows" if self.given else "`given` is among them, and no rows are given"
            complain(
                ("given",) if self.given else ("rows_from",),
                message,
                "write both `given: {path: …}` and `rows_from: [samples, given]`, or `rows_from: given`",
                rule="recipe-needs-key",
            )
        if self.measures_kl and self.batch < 2:
            complain(
                ("per_device_train_batch_size",),
                "KTO measures how far the policy went by answers to other prompts of a step, and this has one row",
                "2 or more, times gradient_accumulation_steps; or loss_type: apo_zero_unpaired, which does not",
                rule="recipe-values-clash",
            )
        for name in ("desirable_weight", "undesirable_weight"):
            if self.trl[name] < 0:
                complain((name,), f"{name!r} must be at least 0, not {self.trl[name]}", rule="recipe-range")
        return self

    @property
    def sources(self) -> list[str]:
        return [name for name in self.rows_from if name != "given"]

    @property
    def batch(self) -> int:
        """Rows of an optimizer step."""
        return self.trl["per_device_train_batch_size"] * self.trl["gradient_accumulation_steps"]

    @property
    def measures_kl(self) -> bool:
        return self.trl["loss_type"] == "kto"

    def label(self, score: float) -> bool | None:
        """Whether an answer of this score is good; None between the thresholds."""
        assert isinstance(self.threshold, Threshold)
        return True if score >= self.threshold.good else False if score <= self.threshold.bad else None


# The trained stages by name, in the order of the loop.
TRAINED: dict[str, type[Trained]] = {kind.trainer: kind for kind in (RewardModel, Sft, Dpo, Kto)}

if __name__ == "__main__":
    trl_fields.write({name: kind.trl_config for name, kind in TRAINED.items()})
