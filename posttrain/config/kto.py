"""The section of KTO: answers marked good or bad, by people or by thresholds on scores."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from posttrain.config import trl_fields
from posttrain.config.keys import NotInKey
from posttrain.config.prompts import ByRound
from posttrain.config.section import MOST, Section, complain
from posttrain.config.trained import Trained

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
            complain(("bad",), "`bad` must not be above `good`", rule="recipe-values-clash")
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
                "KTO estimates the KL term from answers to other prompts of the same step, and a step has one row",
                "make per_device_train_batch_size × gradient_accumulation_steps at least 2; or set loss_type: "
                "apo_zero_unpaired, which has no KL term",
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
    def fewest(self) -> int:
        return 2 if self.measures_kl else 1

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
