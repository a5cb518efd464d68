"""Sections: prompt sets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from posttrain.config.section import Few, Section, complain


class PromptSet(Section):
    """One set of prompts: a shipped file or your own (`path`), or a data set of the Hub (`dataset_name`)."""

    path: str | None = None
    """A JSONL, Parquet or CSV file: a shipped name, or a path with a slash."""
    dataset_name: str | None = None
    """A data set of the Hub."""
    name: str | None = None
    """Its configuration, as in `load_dataset(path, name)`."""
    revision: str | None = None
    """Its branch, tag or commit."""
    split: str | None = None
    """Its split; slices such as `train[:-500]` are understood."""
    columns: dict[str, str | Annotated[list[str], Field(min_length=1)] | None] = Field(default={})
    """Maps our column names to the set's, as in {prompt: question}; a list joins several texts, null leaves a column
    out. Defaults: docs/data.md."""
    rows: str | None = Field(default=None, pattern=r"^-?\d*:-?\d*$")
    """A slice of the rows, as in `:-500`; null: all of them."""

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
    """Validates one set or a list, so that errors name the key: pydantic's union would name its members."""
    if given is None or isinstance(given, PromptSet):
        return given
    return _SETS.validate_python(given) if isinstance(given, list) else PromptSet.model_validate(given)


# One set for all rounds, or a list: round N takes from the Nth, and the last goes on.
ByRound = Annotated[PromptSet | list[PromptSet], BeforeValidator(_one_or_by_round)]


def by_round(sets: PromptSet | list[PromptSet] | None) -> list[PromptSet]:
    """The sets of a key that takes one or a list; none where it is null."""
    return sets if isinstance(sets, list) else [] if sets is None else [sets]


class Decontaminate(Section):
    """Decontamination: drops training prompts that overlap evaluation prompts, like the filter `overlap`."""

    n: Few = 8
    """Tokens in an n-gram."""
    max_share: float = Field(default=0.5, ge=0, le=1)
    """Largest share of an evaluation prompt's n-grams that a training prompt may contain."""


class Prompts(Section):
    """The prompts. Every choice inside a run is made on `dev`, and on `heldout` never."""

    train: ByRound
    """Training prompts. A list: round N uses the Nth set, the last repeats. No prompt of a set is used again before all
    of it was used."""
    dev: PromptSet
    """Prompts for promotion and every other choice within a run."""
    heldout: PromptSet
    """Prompts for reported figures only."""
    against: list[PromptSet] = Field(default=[])
    """Further evaluation sets, for decontamination only; nothing is measured on them."""
    real: PromptSet | None = None
    """Real data for sft.mix.real: prompts with a column `completion` that no model wrote. Evaluation prompts are
    dropped from it as from `train`."""
    decontaminate: Decontaminate | None = None
    """Drop training prompts that overlap an evaluation prompt. Identical ones are always dropped."""
    too_long: Literal["stop", "drop"] = "stop"
    """Prompts that leave no room for an answer in the model's context: `stop` with an error, or `drop`."""
    system: str | None = None
    """A system message for prompts that have none of their own."""
