"""Whether the trainings of a recipe fit into memory, told before weights are loaded; and what would make them fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.config.trained import BATCH, Trained
from posttrain.config.training import TRAINED
from posttrain.errors import ResourceError
from posttrain.execution.resources import MicroBatch, Shape, training_peak
from posttrain.recipe.recipe import Recipe
from posttrain.system import bytes_in_words

_ANSWERS = {"sft": 1, "step_reward": 1, "online": 1, "kto": 1}  # of a row; the others have two


@dataclass(frozen=True)
class Training:
    """A training of the recipe: `name` of its section, the model's part of the config, and its micro-batch."""

    name: str
    model: Mapping[str, Any]
    micro: MicroBatch

    def peak(self, shape: Shape) -> float:
        """Bytes, about."""
        return training_peak(shape, self.model, self.micro)


def trainings(recipe: Recipe, longest_prompt: int) -> list[Training]:
    """The trainings of a recipe whose prompts have at most so many tokens."""
    sections = {name: section for name in TRAINED if (section := getattr(recipe, name))}
    if recipe.watch:
        sections["watch.reward_model"] = recipe.watch.reward_model
    made = []
    for name, section in sections.items():
        sampled = recipe.online if name == "online" else recipe.pairs if name == "dpo" else None
        answer = (sampled or recipe.samples).max_new_tokens
        made.append(Training(name, recipe.model.in_key(), _micro(recipe, name, section, longest_prompt, answer)))
    return made


def _micro(recipe: Recipe, name: str, section: Trained, prompt: int, answer: int) -> MicroBatch:
    rows, accumulated = (section.trl[key] for key in BATCH)
    longest = prompt + answer
    if section.trl.get("max_length"):
        longest = min(longest, section.trl["max_length"])
    answers, answer = _ANSWERS.get(name, 2), min(answer, longest)
    return MicroBatch(
        rows,
        length=longest + (answers - 1) * answer,  # a packed row: the prompt once
        predicted=0 if "reward" in name else answers * answer,
        accumulated=accumulated > 1,
        checkpointed=bool(section.trl.get("activation_checkpointing")),
        bf16=bool(section.trl.get("bf16")),
        eager=recipe.model.attention == "eager",
        copies=section.copies,
    )


def check(wanted: Sequence[Training], shape: Shape, free: float) -> tuple[str, list[str]]:
    """What the trainings take, in words, and a note for each that fits with smaller micro-batches only.

    Raises:
        ResourceError: one of them does not fit even row by row; with what would fit.
    """
    notes = []
    for training in wanted:
        peak = training.peak(shape)
        if peak <= free:
            continue
        takes = f"{training.name} takes about {bytes_in_words(peak)} of memory ({training.micro.rows} rows of up to "
        takes += f"{training.micro.length:,} tokens at once), and {bytes_in_words(free)} are free"
        options = fitting(training, shape, free)
        if replace(training, micro=replace(training.micro, rows=1)).peak(shape) <= free:
            notes.append(f"{takes}; its micro-batches are halved until they fit. Would fit: {'; '.join(options)}")
            continue
        would = f"would fit: {'; '.join(options)}" if options else "take a smaller model, or a larger machine"
        raise ResourceError(f"{takes}, which is too little even for one row; {would}", rule="training-memory")
    return ", ".join(f"{one.name} {bytes_in_words(one.peak(shape))}" for one in wanted), notes


def fitting(training: Training, shape: Shape, free: float) -> list[str]:
    """Changes of the recipe that make the training fit, each with the bytes that it then takes: the fewest of them."""
    name, micro = training.name, training.micro
    lora = {**training.model, "lora": training.model.get("lora") or {"r": 16}}
    again, shorter = replace(micro, checkpointed=True), micro.length // 2
    changes: dict[str, tuple[Mapping[str, Any], MicroBatch]] = {
        f"{name}.{BATCH[0]}: 1": (training.model, replace(micro, rows=1)),
        f"{name}.activation_checkpointing: true": (training.model, again),
        "model.lora": (lora, micro),
        f"{name}.max_length: {shorter}": (
            training.model,
            replace(micro, length=shorter, predicted=min(micro.predicted, shorter)),
        ),
        f"{name}.{BATCH[0]}: 1 with {name}.activation_checkpointing: true": (training.model, replace(again, rows=1)),
        f"model.lora with {name}.{BATCH[0]}: 1 and {name}.activation_checkpointing: true": (
            lora,
            replace(again, rows=1),
        ),
    }
    found: list[str] = []
    for said, (model, changed) in changes.items():
        peak = training_peak(shape, model, changed)
        if peak <= free and (model, changed) != (training.model, micro) and not (found and " with " in said):
            found.append(f"{said} ({bytes_in_words(peak)})")
    return found
