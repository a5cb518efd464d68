"""Sections: prompt sets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from posttrain.config.section import Few, Section, complain


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
