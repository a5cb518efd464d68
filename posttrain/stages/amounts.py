"""The amount of work of each stage: prompts, completions, tokens, rows, steps. Pure arithmetic on a dry run.

How many rows a stage keeps (pairs labelled, samples kept) is known only once it ran; `Shares` holds what a probe
measured with the starting model. Without a probe all are 1, so the plan is an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.config.search import Search
from posttrain.config.section import of_round
from posttrain.stages.registry import StageSpec, spec


@dataclass(frozen=True)
class PlannedStage:
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
class Asked:
    """What a benchmark, or another stage with questions of its own, asks of a policy. `texts`: log-likelihoods; `read`:
    tokens of their texts, each context once, and of the prompts of answers; `answers`: how many answers there are by
    the most new tokens that they may have; `seconds`: of reading the questions, without the model."""

    questions: int
    texts: int
    read: int
    answers: Mapping[int, int]
    seconds: float


@dataclass(frozen=True)
class Sets:
    """Prompts in each set, and of the training prompts those that `preferences.where` selects. `given`: rows of the
    sets under `given` in a section, by section and round; `length`: the mean tokens of a prompt; `asked`: by role."""

    train: int
    dev: int
    heldout: int
    where: int
    given: Mapping[str, Sequence[int]] = field(default_factory=dict)
    length: float = 0.0
    asked: Mapping[str, Asked] = field(default_factory=dict)


@dataclass(frozen=True)
class Shares:
    """What a stage keeps: pairs per prompt, the share of samples kept; and the mean tokens of an answer."""

    preferences: float = 1.0
    kept: float = 1.0
    pairs: float = 1.0
    length: float | None = None  # None: as long as is allowed


@dataclass(frozen=True)
class Amounts:
    """The work of one stage. `rows`: scored, filtered or trained on; `made`: rows that it writes for others (samples,
    kept samples, pairs); `passes`: rows of forward passes besides the optimizer steps; `steps`: optimizer steps.

    Of a stage whose unit is tokens: `read`: tokens besides the new ones; `longest`: both, if each answer is as long as
    it may be; `as_answers`: the answers of a mean length that have as many tokens; `seconds`: what it does without a
    model."""

    prompts: int = 0
    completions: int = 0
    tokens: int = 0
    rows: int = 0
    steps: int = 0
    made: float = 0.0
    passes: int = 0
    read: int = 0
    longest: int = 0
    as_answers: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Book:
    """State while the stages are gone through in order; `done` holds the amounts of those before."""

    sets: Sets
    shares: Shares
    stages: Mapping[str, PlannedStage]
    done: dict[str, Amounts]

    def read(self, planned: PlannedStage, *beginnings: str) -> list[Amounts]:
        """The amounts of what a stage reads, of roles with one of these prefixes."""
        found = [key for role, key in planned.inputs.items() if role.startswith(beginnings)]
        return [self.done[key] for key in found if key in self.done]

    @property
    def length(self) -> float:
        """The mean tokens of an answer; the most there may be, where that was not measured."""
        if self.shares.length is not None:
            return self.shares.length
        sampled = [one for one in self.stages.values() if one.spec.samples]
        return max(one.config["answers"]["max_new_tokens"] for one in sampled)

    def pairs(self, planned: PlannedStage, watch: bool = False) -> float:
        """Of the preferences that a stage reads, the pairs that train: see `posttrain.data.pairs.split`."""
        pairs = 0.0
        for role, key in planned.inputs.items():
            if role.startswith("preferences_") and key in self.done:
                config = self.stages[key].config
                second = config.get("watch", 0.0)
                share = second if watch else 1 - config["preferences"]["heldout"] - second
                pairs += self.done[key].made * share
        return pairs


def amounts(stages: Sequence[PlannedStage], sets: Sets, shares: Shares) -> dict[str, Amounts]:
    """The amounts of each stage of a dry run, by key; all 0 for a stage that is not known here."""
    book = Book(sets, shares, {planned.key: planned for planned in stages}, {})
    for planned in stages:
        make = _STAGES.get(planned.stage) or (_single_answers if planned.spec.reference_reads else None)
        book.done[planned.key] = make(planned, book) if make else Amounts()
    return book.done


def training_steps(section: Mapping[str, Any], rows: float) -> int:
    """Steps of one training, as transformers counts them: whole batches and one for the rest, an epoch; at least 1."""
    if section.get("max_steps", -1) > 0:
        return section["max_steps"]
    per_epoch = max(math.ceil(rows / section["batch"]), 1)
    return math.ceil(section["num_train_epochs"] * per_epoch)


def _answers(planned: PlannedStage, book: Book) -> Amounts:
    """K answers per prompt, plus the greedy one where `greedy` is set, plus K // 2 at each further temperature."""
    config, settings = planned.config, planned.config["answers"]
    if config["set"] == "train":
        prompts, count = book.sets.where if config["where"] else book.sets.train, config["take"]["count"]
        prompts = prompts if count is None else min(count, prompts)
    else:
        prompts = getattr(book.sets, config["set"])
    completions = prompts * (settings["k"] + config["greedy"] + len(config["further"]) * max(1, settings["k"] // 2))
    longest = settings["max_new_tokens"]
    length = longest if book.shares.length is None else min(book.shares.length, longest)
    return Amounts(prompts, completions, round(completions * length), completions, made=completions)


def _scored(planned: PlannedStage, book: Book) -> Amounts:
    """Answers that rewards score. All are left, or so many per prompt as become pairs."""
    read = book.read(planned, "answers", "policy", "previous")
    prompts, rows = max((one.prompts for one in read), default=0), sum(one.rows for one in read)
    left = {"preferences": book.shares.preferences, "pairs": book.shares.pairs}.get(planned.stage)
    return Amounts(prompts, rows=rows, made=rows if left is None else prompts * left)


def _filters(planned: PlannedStage, book: Book) -> Amounts:
    (scored,) = book.read(planned, "scored")
    return Amounts(scored.prompts, rows=scored.rows, made=scored.rows * book.shares.kept)


def _watch(planned: PlannedStage, book: Book) -> Amounts:
    return Amounts(rows=sum(one.rows for one in book.read(planned, "policy", "previous", "base")))


def _sft(planned: PlannedStage, book: Book) -> Amounts:
    mix, rows = planned.config["sft"]["mix"], 0.0
    for name, role in (("fresh", "kept"), ("earlier", "earlier_")):
        rows += sum(one.made * mix[name]["share"] * mix[name]["repeats"] for one in book.read(planned, role))
    return _trained(planned, rows)


def _online(planned: PlannedStage, book: Book) -> Amounts:
    """A row is a completion of a prompt of the samples, sampled in its step; at most all prompts are learned from."""
    section = planned.config["online"]
    prompts = sum(one.prompts for one in book.read(planned, "samples"))
    most = section["prompts"]
    found = _trained(planned, (prompts if most is None else min(most, prompts)) * section["group"])
    made = round(found.steps * min(section["batch"], found.rows))
    return replace(found, completions=made, tokens=round(made * min(book.length, section["max_new_tokens"])))


def _reward_model(planned: PlannedStage, book: Book) -> Amounts:
    return _trained(planned, book.pairs(planned, planned.config.get("split") == "watch"))


def _dpo(planned: PlannedStage, book: Book) -> Amounts:
    """A round's samples give at most one pair per prompt, best and worst."""
    rows = sum(one.prompts for one in book.read(planned, "samples"))
    rows += sum(one.made for one in book.read(planned, "pairs", "search", "correction"))
    return _trained(planned, rows + book.pairs(planned))


def _single_answers(planned: PlannedStage, book: Book) -> Amounts:
    """Every answer that it reads is one row."""
    given = book.sets.given.get(planned.stage)
    rows = sum(one.rows for one in book.read(planned, "samples"))
    return _trained(planned, rows + (of_round(given, planned.number) if given else 0))


def _asked(planned: PlannedStage, book: Book) -> Amounts:
    """Answers are as long as those to prompts are on average, or as long as they may be."""
    asked, length = book.sets.asked.get(planned.role), book.shares.length
    if asked is None:
        return Amounts()
    longest = sum(count * most for most, count in asked.answers.items())
    tokens = longest
    if length is not None:
        tokens = round(sum(count * min(length, most) for most, count in asked.answers.items()))
    return Amounts(
        asked.questions,
        sum(asked.answers.values()),
        tokens,
        asked.texts,
        read=asked.read,
        longest=asked.read + longest,
        as_answers=(asked.read + tokens) / book.length,
        seconds=asked.seconds,
    )


def _memorisation(planned: PlannedStage, book: Book) -> Amounts:
    """Each row is read up to its n-gram, which may be the last: prompt and answer, of a mean length."""
    most = planned.config["memorisation"]["rows"]
    rows = sum(round(min(most, one.made)) for one in book.read(planned, "kept", "heldout"))
    read = round(rows * (book.sets.length + book.length))
    return Amounts(rows=rows, read=read, longest=read, as_answers=read / book.length)


def _step_scores(planned: PlannedStage, book: Book) -> Amounts:
    """Policy and reference, or the step reward model, read each prompt once, and all of its answers."""
    sampled = book.read(planned, "answers")
    rows, models = sum(one.completions for one in sampled), 1 if "step_reward" in planned.inputs else 2
    read = round(models * sum(one.prompts * book.sets.length + one.completions * book.length for one in sampled))
    return Amounts(rows=rows, read=read, longest=read, as_answers=read / book.length)


def _search(planned: PlannedStage, book: Book) -> Amounts:
    """At most all prompts of the samples, each with as many tokens as its search may sample. Reading is not counted."""
    return _looked_for(planned, book, Search.restored(planned.config["search"]).budget)


def _step_labels(planned: PlannedStage, book: Book) -> Amounts:
    """At most `answers` wrong samples of all prompts, for each as many beginnings as a binary search over steps of ten
    tokens looks at, half an answer behind each."""
    section, (samples,) = planned.config["labels"], book.read(planned, "samples")
    prompts = samples.prompts if section["prompts"] is None else min(section["prompts"], samples.prompts)
    each, probes = min(book.length, section["max_new_tokens"]), math.ceil(math.log2(max(2.0, book.length / 10)))
    wrong, kinds = prompts * min(section["answers"], samples.rows / max(1, samples.prompts)), 2
    tokens = round(wrong * probes * section["k"] * each / 2)
    made = wrong * kinds
    return Amounts(
        prompts, tokens=tokens, rows=round(made), made=made, longest=2 * tokens, as_answers=tokens / book.length
    )


def _step_reward(planned: PlannedStage, book: Book) -> Amounts:
    labelled = sum(one.made for one in book.read(planned, "labels"))
    labels = next(book.stages[key] for role, key in planned.inputs.items() if role == "labels")
    return _trained(planned, labelled * (1 - labels.config["labels"]["heldout"]))


def _correction(planned: PlannedStage, book: Book) -> Amounts:
    """At most all prompts of the samples, each asked again as often as may be. Reading is not counted."""
    section = planned.config["correction"]
    return _looked_for(planned, book, section["turns"] * section["k"] * section["max_new_tokens"])


def _looked_for(planned: PlannedStage, book: Book, each: int) -> Amounts:
    """Samples, and at most an answer more for each prompt that is looked for, at a cost of so many tokens."""
    samples, most = book.read(planned, "samples"), planned.config[planned.stage]["prompts"]
    prompts, rows = sum(one.prompts for one in samples), sum(one.rows for one in samples)
    asked = prompts if most is None else min(most, prompts)
    tokens = asked * each
    answers = tokens / book.length
    return Amounts(prompts, round(answers), tokens, rows + asked, made=asked, longest=tokens, as_answers=answers)


def _forecast(planned: PlannedStage, book: Book) -> Amounts:
    """Every policy reads each prompt once, with the different answers that any of them sampled: at most all K."""
    heldout = [key for role, key in planned.inputs.items() if role.startswith("heldout") and key in book.done]
    behind = [book.stages[key] for one in heldout for key in book.stages[one].inputs.values() if key in book.stages]
    sampled = [one for one in behind if one.spec.samples]
    prompts = min(planned.config["forecast"]["prompts"], max((book.done[one].prompts for one in heldout), default=0))
    answers = prompts * sum(one.config["answers"]["k"] for one in sampled)
    read = round(len(heldout) * (prompts * book.sets.length + answers * book.length))
    return Amounts(prompts, rows=len(heldout) * answers, read=read, longest=read, as_answers=read / book.length)


def _trained(planned: PlannedStage, rows: float) -> Amounts:
    steps, reads = training_steps(planned.config[planned.stage], rows), planned.spec.reference_reads
    return Amounts(rows=round(rows), steps=steps, passes=round(rows) * reads)


_STAGES: dict[str, Callable[[PlannedStage, Book], Amounts]] = {
    "answers": _answers,
    "preferences": _scored,
    "difficulty": _scored,
    "scores": _scored,
    "filters": _filters,
    "pairs": _scored,
    "evaluate": _scored,
    "heldout": _scored,
    "choose": _scored,
    "sft": _sft,
    "online": _online,
    "reward_model": _reward_model,
    "dpo": _dpo,
    "watch": _watch,
    "benchmark": _asked,
    "label_variants": _asked,
    "memorisation": _memorisation,
    "step_scores": _step_scores,
    "forecast": _forecast,
    "search": _search,
    "step_labels": _step_labels,
    "step_reward": _step_reward,
    "correction": _correction,
}
