"""Reads the prompt sets, checks that every prompt fits the model, and writes them as tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import models, rewards
from posttrain.config import Decontaminate, Judge, Prompts, PromptSet, RewardEntry
from posttrain.data import load as loaders
from posttrain.data.chat_template import render_prompt
from posttrain.data.messages import Message, Prompt, hinted, under
from posttrain.data.tables import MESSAGES
from posttrain.errors import DataError, RewardError
from posttrain.filters import message_text
from posttrain.filters.contamination import overlap
from posttrain.job import Job
from posttrain.models.inspection import inspect
from posttrain.rewards import pairwise
from posttrain.rewards.protocol import RewardBase

SCHEMA = pa.schema([("id", pa.string()), ("prompt", MESSAGES), ("columns", pa.string()), ("line", pa.int64())])

_FEW = 8  # prompts that the chat template is tried with

REAL = pa.schema([("id", pa.string()), ("prompt", MESSAGES), ("completion", MESSAGES)])


def run(job: Job) -> dict[str, Any]:
    """Inputs: model. Config: max_new_tokens, systems and hint of the samples, decontaminate. Runtime: prompts (with
    paths); and, to be checked only: later (training sets of later rounds), given (rows given to sections: by section
    its sets, and the reader in `loaders.GIVEN`), reference (DPO's). Writes train.parquet, dev.parquet and
    heldout.parquet; against.parquet for further evaluation sets, real.parquet for real data.

    Training prompts that are evaluation prompts too are dropped and counted, whatever the recipe's filters are:
    preferences, samples and pairs all start from train.parquet.

    Raises:
        DataError: a set cannot be read, is empty, or holds a prompt too long for the model (`too_long: stop`).
        ModelError: the model's folder or its chat template is broken or cannot be used.
    """
    from transformers import AutoTokenizer

    from posttrain.training import architecture  # here, since it imports peft

    if job.runtime.get("load_in_4bit"):
        from posttrain.training.lora import check_four_bits  # here, since it imports peft

        check_four_bits()  # checked again where it is used; here before anything is sampled or trained
    sets = Prompts.model_validate(job.runtime["prompts"])
    model = job.inputs["model"]
    first = _first(job, sets)
    unused = inspect(model, first)
    for judge in job.runtime.get("judge_models", []):
        inspect(Path(judge), first, trained=False)
    architecture.check(model, job.runtime.get("lora"), bool(job.runtime.get("reward_model")))
    tokenizer = AutoTokenizer.from_pretrained(model)
    if "reference" in job.runtime:  # checked again where it is used; here before anything is sampled
        inspect(Path(job.runtime["reference"]), [], trained=False, chats=False)
        models.check_same_tokens(model, Path(job.runtime["reference"]))
    room = _Room(tokenizer, models.context_length(model), job.config["max_new_tokens"], sets.too_long == "drop")
    metrics: dict[str, Any] = {"unused_weights": unused} if unused else {}
    against = [
        prompt
        for index, one in enumerate(sets.against)
        for prompt in loaders.read_prompts(one, where=f"prompts.against.{index}")
    ]
    if against:
        _write(against, job.out / "against.parquet")
    evaluated_on = [message_text(prompt.messages) for prompt in against]
    for name in ("dev", "heldout"):
        kept, metrics[name] = _read(job, room, getattr(sets, name), name)
        evaluated_on += [message_text(prompt.messages) for prompt in kept]
        _write(kept, job.out / f"{name}.parquet")
    contamination = _contamination(evaluated_on, sets.decontaminate)
    train, *later = [sets.train, *(PromptSet.model_validate(each) for each in job.runtime.get("later", []))]
    assert isinstance(train, PromptSet)
    kept, metrics["train"] = _read(job, room, train, "train", contamination)
    _write(kept, job.out / "train.parquet")
    for each in later:  # read again in their rounds; here so that errors in them come before anything is sampled
        _read(job, room, each, "train", contamination)
    for name, given in job.runtime.get("given", {}).items():
        rows = [
            loaders.GIVEN[given["as"]](PromptSet.model_validate(each), where=f"{name}.given") for each in given["sets"]
        ]
        metrics.setdefault("given", {})[name] = [len(found) for found in rows]
    if sets.real:
        real, left_out = _real(sets, sets.real, contamination)
        pq.write_table(pa.Table.from_pylist(real, schema=REAL), job.out / "real.parquet")
        metrics["real"] = {"rows": len(real), **left_out}
    return {**metrics, "longest_prompt": room.longest, "mean_prompt": round(room.tokens / room.fit, 1)}


def _real(
    sets: Prompts, real: PromptSet, contamination: Callable[[Prompt], str | None]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The real answers, without those to evaluation prompts; and the number of those."""
    rows, left_out = [], Counter[str]()
    for prompt, completion in loaders.read_demonstrations(real, sets.system, where="prompts.real"):
        reason = contamination(prompt)
        if reason:
            left_out[reason] += 1
        else:
            rows.append({"id": prompt.id, "prompt": list(prompt.messages), "completion": list(completion)})
    if not rows:
        raise DataError(
            "no row is left: the prompts of all are in an evaluation set",
            file=real.path or real.dataset_name,
            hint="give rows whose prompts are not in dev, heldout or against",
            rule="data-real-evaluated-on",
        )
    return rows, left_out


@dataclass
class _Room:
    """The room for prompts: at most `context` − `new` tokens. `drop`: longer prompts are dropped and counted."""

    tokenizer: Any
    context: int
    new: int
    drop: bool
    longest: int = 0  # tokens of a prompt that fits
    tokens: int = 0  # of all that fit
    fit: int = 0


def _nothing(prompt: Prompt) -> None:
    """The contamination check of an evaluation set: drops no prompt."""


def _read(
    job: Job, room: _Room, prompt_set: PromptSet, name: str, contamination: Callable[[Prompt], str | None] = _nothing
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts of a set that fit the model and are not contaminated, and the counts of kept and dropped ones.

    Raises:
        DataError: none is left, or one does not fit and `too_long` is `stop`.
        RewardError: a reward cannot score this set.
    """
    counts: Counter[str] = Counter()
    prompts = loaders.read_prompts(
        prompt_set, job.runtime["prompts"].get("system"), where=f"prompts.{name}", counts=counts
    )
    place = prompt_set.path or prompt_set.dataset_name
    _check_rewards(_rewards_of(job, name), prompts, place)
    messages = [None, *(job.config.get("systems", []) if name == "train" else [])]
    hint = job.config.get("hint") if name == "train" else None
    if hint and not any(hint in prompt.columns for prompt in prompts):
        raise DataError(
            f"samples.hint names the column {hint!r}, which no training prompt has",
            file=place,
            hint="name a column of the prompts with a text for each, or null",
            rule="data-hint",
        )
    left_out: Counter[str] = Counter({"too_long": 0, "in_an_evaluation_set": 0})
    kept = []
    for prompt in prompts:
        asked = _with_hint(prompt, hint, place) if hint else prompt
        reason = contamination(prompt) or (None if _fits(room, asked, messages, place) else "too_long")
        if reason:
            left_out[reason] += 1
        else:
            kept.append(prompt)
    if not kept:
        raise DataError(
            "no prompt is left: all are in an evaluation set, or too long",
            file=place,
            hint="give other prompts, or lower max_new_tokens",
            rule="data-no-prompt-left",
        )
    return kept, {"prompts": len(kept), **left_out, **counts}


def _with_hint(prompt: Prompt, column: str, place: str | None) -> Prompt:
    hint = prompt.columns.get(column)
    if hint is not None and not isinstance(hint, str):
        raise DataError(
            f"the hint in the column {column!r} is no text: {hint!r:.80}",
            file=place,
            line=prompt.line,
            hint="give a text, or null for a prompt without a hint",
            rule="data-hint",
        )
    return replace(prompt, messages=tuple(hinted(hint, prompt.messages)))


def _fits(room: _Room, prompt: Prompt, systems: Sequence[str | None], place: str | None) -> bool:
    """Whether the model can answer the prompt under each of these system messages; notes its length if so."""
    length = max(_length(room.tokenizer, prompt, system, place) for system in systems)
    if length + room.new > room.context and not room.drop:
        raise DataError(
            f"the prompt has {length} tokens; with {room.new} new ones that is more than the model's context of "
            f"{room.context}",
            file=place,
            line=prompt.line,
            hint="shorten it, lower max_new_tokens, or set prompts.too_long: drop",
            rule="data-prompt-too-long",
        )
    if length + room.new > room.context:
        return False
    room.longest = max(room.longest, length)
    room.tokens += length
    room.fit += 1
    return True


def _contamination(evaluated_on: Sequence[str], near: Decontaminate | None) -> Callable[[Prompt], str | None]:
    """A function that gives the reason why a prompt must not be trained on, or None.

    The text of an evaluation prompt is never trained on, whatever its case, white space or system message.
    """
    same = {_plain(text) for text in evaluated_on}
    overlaps = overlap(evaluated_on, near.n, near.max_share) if near else None

    def reason(prompt: Prompt) -> str | None:
        text = message_text(prompt.messages)
        if _plain(text) in same:
            return "in_an_evaluation_set"
        return "overlaps_an_evaluation_set" if overlaps and overlaps(text) else None

    return reason


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _first(job: Job, sets: Prompts) -> list[Sequence[Message]]:
    """The first evaluation prompts, under each system message, to try the chat template on."""
    prompts = loaders.read_prompts(sets.dev, sets.system, where="prompts.dev")[:_FEW]
    return [under(system, prompt.messages) for system in [None, *job.config.get("systems", [])] for prompt in prompts]


def _length(tokenizer: Any, prompt: Prompt, system: str | None, place: str | None) -> int:
    try:
        return len(render_prompt(tokenizer, under(system, prompt.messages)))
    except DataError as error:
        raise error.replaced(file=place, line=prompt.line) from error


def _rewards_of(job: Job, name: str) -> list[RewardBase]:
    """What is to score the answers to the prompts of a set. What reads no columns is tried once, after the others."""
    runtime = rewards.Runtime(job.runtime.get("reward_minutes"))
    loaded = [rewards.load(RewardEntry.model_validate(entry), runtime) for entry in job.runtime["rewards"]]
    asked: list[RewardBase] = [one for one in loaded if one.reads_columns]
    if name == "train":
        asked.extend(one for one in loaded if not one.reads_columns)
    if name == "heldout":
        judges = [Judge.model_validate(entry) for entry in job.runtime.get("judges", [])]
        asked.extend(pairwise.load(judge.entry, runtime) for judge in judges)
    return asked


def _check_rewards(asked: Sequence[RewardBase], prompts: list[Prompt], place: str | None) -> None:
    """Checks that every reward finds its columns in this set and that a trial call works."""
    for reward in asked:
        try:
            reward.check_columns(list(prompts[0].columns) if prompts else [])
        except RewardError as error:
            raise error.replaced(message=f"{error.message}, and {place} has none") from error
        reward.probe(prompts)


def _write(prompts: list[Prompt], path: Any) -> None:
    rows = [
        {
            "id": prompt.id,
            "prompt": list(prompt.messages),
            "columns": json.dumps(dict(prompt.columns), ensure_ascii=False),
            "line": prompt.line,
        }
        for prompt in prompts
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
