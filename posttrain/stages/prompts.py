"""Reads the prompt sets, checks that every prompt fits the model, and keeps them as tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain import loaders, pairwise, rewards
from posttrain.chat import check_template, render_prompt
from posttrain.errors import DataError, ModelError, RewardError
from posttrain.filters import message_text
from posttrain.filters.contamination import overlap
from posttrain.pairwise import Pairwise
from posttrain.recipe import Decontaminate, Judge, Prompts, RewardEntry
from posttrain.records import Prompt, under
from posttrain.rewards import Reward
from posttrain.stages import Job
from posttrain.tables import MESSAGES

SCHEMA = pa.schema([("id", pa.string()), ("prompt", MESSAGES), ("columns", pa.string()), ("line", pa.int64())])


def run(job: Job) -> dict[str, Any]:
    """Inputs: model. Config: max_new_tokens, decontaminate. Settings: prompts (with paths). Writes train, dev and
    heldout.parquet, against.parquet where there are further evaluation sets, and real.parquet where there is real data.

    Of the training prompts, those that are evaluated on are left out and counted, whatever the recipe's filters are:
    preferences, samples and pairs all start from train.parquet.

    Raises:
        DataError: a set cannot be read, is empty, or holds a prompt too long for the model (`too_long: stop`).
        ModelError: the model has no usable chat template.
    """
    from transformers import AutoConfig, AutoTokenizer

    if job.settings.get("load_in_4bit"):
        from posttrain.training.lora import check_four_bits  # here, since it imports peft

        check_four_bits()  # asked again where it is used; here before anything is sampled or trained
    sets = Prompts.model_validate(job.settings["prompts"])
    model = job.inputs["model"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        config = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot read the model's config and tokenizer: {error}", file=str(model)) from error
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {config.vocab_size}",
            file=str(model),
            hint="use the tokenizer that the model was trained with",
        )
    try:
        check_template(tokenizer, _end_ids(model))
    except ModelError as error:
        raise ModelError(error.message, file=str(model), hint=error.hint) from error
    context = getattr(config, "max_position_embeddings", None) or 1 << 30
    room = context - job.config["max_new_tokens"]
    metrics: dict[str, Any] = {}
    against = _against(sets)
    if against:
        _write(against, job.out / "against.parquet")
    evaluated_on = [message_text(prompt.messages) for prompt in against]
    for name in ("dev", "heldout", "train"):
        prompt_set = getattr(sets, name)
        counts: Counter[str] = Counter()
        prompts = loaders.read_prompts(prompt_set, sets.system, where=f"prompts.{name}", counts=counts)
        place = prompt_set.path or prompt_set.dataset_name
        asked: list[Reward | Pairwise] = [
            rewards.load(RewardEntry.model_validate(entry)) for entry in job.settings["rewards"]
        ]
        if name == "heldout":
            asked += [pairwise.load(Judge.model_validate(entry).entry) for entry in job.settings.get("judges", [])]
        _check_rewards(asked, prompts, place)
        dropped: Counter[str] = Counter()
        if name == "train":
            prompts, dropped = _decontaminated(prompts, evaluated_on, sets.decontaminate)
        kept = []
        for prompt in prompts:
            messages = [None, *(job.config.get("systems", []) if name == "train" else [])]
            length = max(_length(tokenizer, prompt, message, place) for message in messages)
            if length <= room:
                kept.append(prompt)
            elif sets.too_long == "stop":
                raise DataError(
                    f"the prompt has {length} tokens; with {job.config['max_new_tokens']} new ones that is more than "
                    f"the model's context of {context}",
                    file=place,
                    line=prompt.line,
                    hint="shorten it, lower max_new_tokens, or set prompts.too_long: drop",
                )
        if not kept:
            raise DataError("no prompt is left", file=place)
        evaluated_on += [message_text(prompt.messages) for prompt in kept]
        _write(kept, job.out / f"{name}.parquet")
        out = {"too_long": len(prompts) - len(kept), "in_an_evaluation_set": 0, **dropped, **counts}
        metrics[name] = {"prompts": len(kept), **out}
    if sets.real:
        real, dropped = _decontaminated(_real(sets), evaluated_on, sets.decontaminate)
        if not real:
            raise DataError("no row is left that is not evaluated on", file=sets.real.path or sets.real.dataset_name)
        _write(real, job.out / "real.parquet")
        metrics["real"] = {"rows": len(real), **dropped}
    return metrics


def _real(sets: Prompts) -> list[Prompt]:
    """Prompts with what somebody answered, as messages, in the column `completion`."""
    assert sets.real
    made = loaders.read_prompts(sets.real, sets.system, where="prompts.real")
    place = sets.real.path or sets.real.dataset_name
    for prompt in made:
        answer = prompt.columns.get("completion")
        if not (isinstance(answer, str) and answer.strip()):
            hint = "write the answer as text; or name its column: prompts.real.columns: {prompt: …, completion: …}"
            raise DataError("the row has no text in a column 'completion'", file=place, line=prompt.line, hint=hint)
    return made


def _against(sets: Prompts) -> list[Prompt]:
    """The prompts of the further evaluation sets."""
    return [
        prompt
        for index, one in enumerate(sets.against)
        for prompt in loaders.read_prompts(one, where=f"prompts.against.{index}")
    ]


def _decontaminated(
    prompts: Sequence[Prompt], evaluated_on: Sequence[str], near: Decontaminate | None
) -> tuple[list[Prompt], Counter[str]]:
    """The prompts that are not evaluated on, and how many were, by why.

    The same text is never trained on, in whatever case and white space, under whatever system message.
    """
    same = {_plain(text) for text in evaluated_on}
    overlaps = overlap(evaluated_on, near.n, near.max_share) if near else None
    kept, dropped = [], Counter[str]()
    for prompt in prompts:
        text = message_text(prompt.messages)
        if _plain(text) in same:
            dropped["in_an_evaluation_set"] += 1
        elif overlaps and overlaps(text):
            dropped["overlaps_an_evaluation_set"] += 1
        else:
            kept.append(prompt)
    return kept, dropped


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _end_ids(model: Path) -> list[int]:
    """The end tokens of the model's generation config, where it has one."""
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        return []
    return named if isinstance(named, list) else [] if named is None else [named]


def _length(tokenizer: Any, prompt: Prompt, system: str | None, place: str | None) -> int:
    try:
        return len(render_prompt(tokenizer, under(system, prompt.messages)))
    except DataError as error:
        raise DataError(error.message, file=place, line=prompt.line, hint=error.hint) from error


def _check_rewards(asked: Sequence[Reward | Pairwise], prompts: list[Prompt], place: str | None) -> None:
    """Whether every reward finds its columns in this set and answers when asked: before anything is sampled."""
    for reward in asked:
        try:
            reward.check_columns(list(prompts[0].columns) if prompts else [])
        except RewardError as error:
            raise RewardError(f"{error.message}, and {place} has none", file=error.file, hint=error.hint) from error
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
