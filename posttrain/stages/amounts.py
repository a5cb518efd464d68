"""What each stage has to do: prompts, completions, tokens, rows, steps. Pure arithmetic on a rehearsal.

How many rows a stage leaves over (pairs labelled, samples kept) only running it tells; `Shares` says what a probe found
with the starting model. Without a probe all are 1, so the plan says the most there can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.config.section import of_round
from posttrain.stages.registry import StageSpec, spec


@dataclass(frozen=True)
class Step:
    """One stage of one round. `inputs`: keys of what it reads, by role; `waits`: keys that must be done before it."""

    key: str
    number: int  # of the round
    stage: str
    role: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    waits: frozenset[str]

    @property
    def spec(self) -> StageSpec:
        return spec(self.stage, self.role)


@dataclass(frozen=True)
class Sets:
    """Prompts in each set, and of the training ones those that `preferences.where` takes. `given`: rows of the sets
    that sections name so, by section and round."""

    train: int
    dev: int
    heldout: int
    where: int
    given: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Shares:
    """What is left over: pairs a prompt, samples kept of those made; and tokens of an answer."""

    preferences: float = 1.0
    kept: float = 1.0
    pairs: float = 1.0
    length: float | None = None  # None: as long as is allowed


@dataclass(frozen=True)
class Amounts:
    """What one stage does. `rows`: scored, filtered or trained on; `made`: rows that it leaves to others (samples,
    kept samples, pairs); `passes`: rows that a model reads once beside the steps."""

    prompts: int = 0
    completions: int = 0
    tokens: int = 0
    rows: int = 0
    steps: int = 0
    made: float = 0.0
    passes: int = 0


@dataclass(frozen=True)
class Book:
    """What is known while the stages are gone through: the amounts of those before are in `done`."""

    sets: Sets
    shares: Shares
    steps: Mapping[str, Step]
    done: dict[str, Amounts]

    def read(self, step: Step, *beginnings: str) -> list[str]:
        """The keys of the stages that a step reads in these roles."""
        return [key for role, key in step.inputs.items() if role.startswith(beginnings) and key in self.done]

    def sampled(self, prompts: int, per_prompt: int, longest: int) -> Amounts:
        """Answers to prompts."""
        completions = prompts * per_prompt
        length = longest if self.shares.length is None else min(self.shares.length, longest)
        return Amounts(prompts, completions, round(completions * length), completions, made=completions)

    def pairs(self, key: str, watch: bool = False) -> float:
        """Of a table of preferences, the pairs that train: see `posttrain.data.pairs.split`."""
        config = self.steps[key].config
        second = config.get("watch", 0.0)
        return self.done[key].made * (second if watch else 1 - config["preferences"]["heldout"] - second)


def amounts(steps: Sequence[Step], sets: Sets, shares: Shares) -> dict[str, Amounts]:
    """By key, what each stage of a rehearsal does. A stage that is not known here does nothing."""
    book = Book(sets, shares, {step.key: step for step in steps}, {})
    for step in steps:
        make = _STAGES.get(step.stage) or (_single_answers if step.spec.reference_reads else None)
        book.done[step.key] = make(step, book) if make else Amounts()
    return book.done


def training_steps(section: Mapping[str, Any], rows: float) -> int:
    """Steps of one training, as transformers counts them: whole batches and one for the rest, an epoch; at least 1."""
    if section.get("max_steps", -1) > 0:
        return section["max_steps"]
    per_epoch = max(math.ceil(rows / section["batch"]), 1)
    return math.ceil(section["num_train_epochs"] * per_epoch)


def _taken(step: Step, available: int) -> int:
    count = step.config["take"]["count"]
    return available if count is None else min(count, available)


def _answers(step: Step, book: Book) -> Amounts:
    """K answers to a prompt, the greedy one too where it is asked for, and half of K at each further temperature."""
    config, settings = step.config, step.config["answers"]
    if config["set"] == "train":
        prompts = _taken(step, book.sets.where if config["where"] else book.sets.train)
    else:
        prompts = getattr(book.sets, config["set"])
    per_prompt = settings["k"] + config["greedy"] + len(config["further"]) * max(1, settings["k"] // 2)
    return book.sampled(prompts, per_prompt, settings["max_new_tokens"])


def _scored(step: Step, book: Book, left: float | None = None) -> Amounts:
    """Answers that rewards score. `left`: rows left per prompt, where that is not all."""
    read = [book.done[key] for key in book.read(step, "answers", "policy", "previous")]
    prompts, rows = max((one.prompts for one in read), default=0), sum(one.rows for one in read)
    return Amounts(prompts, rows=rows, made=rows if left is None else prompts * left)


def _preferences(step: Step, book: Book) -> Amounts:
    return _scored(step, book, book.shares.preferences)


def _pairs(step: Step, book: Book) -> Amounts:
    return _scored(step, book, book.shares.pairs)


def _filters(step: Step, book: Book) -> Amounts:
    (scored,) = (book.done[key] for key in book.read(step, "scored"))
    return Amounts(scored.prompts, rows=scored.rows, made=scored.rows * book.shares.kept)


def _watch(step: Step, book: Book) -> Amounts:
    return Amounts(rows=sum(book.done[key].rows for key in book.read(step, "policy", "previous", "base")))


def _sft(step: Step, book: Book) -> Amounts:
    mix = step.config["sft"]["mix"]
    keys = {"fresh": book.read(step, "kept"), "earlier": book.read(step, "earlier_")}
    rows = sum(
        book.done[key].made * mix[name]["share"] * mix[name]["repeats"] for name, found in keys.items() for key in found
    )
    return _trained(step.config["sft"], rows)


def _reward_model(step: Step, book: Book) -> Amounts:
    second = step.config.get("split") == "watch"
    rows = sum(book.pairs(key, second) for key in book.read(step, "preferences_"))
    return _trained(step.config["reward_model"], rows)


def _dpo(step: Step, book: Book) -> Amounts:
    """Of a round's samples the best and the worst make a pair a prompt at most. The reference reads every pair once."""
    rows = sum(book.done[key].prompts for key in book.read(step, "samples"))
    rows += sum(book.done[key].made for key in book.read(step, "pairs"))
    rows += sum(book.pairs(key) for key in book.read(step, "preferences_"))
    return _against_reference(step, rows)


def _single_answers(step: Step, book: Book) -> Amounts:
    """All that it reads, answer by answer."""
    rows = sum(book.done[key].rows for key in book.read(step, "samples"))
    given = book.sets.given.get(step.stage)
    return _against_reference(step, rows + (of_round(given, step.number) if given else 0))


def _against_reference(step: Step, rows: float) -> Amounts:
    made = _trained(step.config[step.stage], rows)
    return replace(made, passes=made.rows * step.spec.reference_reads)


def _trained(section: Mapping[str, Any], rows: float) -> Amounts:
    return Amounts(rows=round(rows), steps=training_steps(section, rows))


_STAGES: dict[str, Callable[[Step, Book], Amounts]] = {
    "answers": _answers,
    "preferences": _preferences,
    "difficulty": _scored,
    "scores": _scored,
    "filters": _filters,
    "pairs": _pairs,
    "evaluate": _scored,
    "heldout": _scored,
    "choose": _scored,
    "sft": _sft,
    "reward_model": _reward_model,
    "dpo": _dpo,
    "watch": _watch,
}
