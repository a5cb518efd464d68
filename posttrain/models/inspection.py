"""Inspects a model folder before anything else: settings, tokenizer, chat template, weight names, shapes and values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.data.chat_template import check_template
from posttrain.data.messages import Message
from posttrain.errors import ModelError
from posttrain.models import finite, json_files, own_template, settings, structure, tokenizer_files
from posttrain.models.folder import check_files, check_settings
from posttrain.storage import bounded

# Of a processor, for each step; by the clock three times as long, under a minute. A vocabulary of 256,000 that must be
# converted takes some ten.
_SECONDS = 18
_MEMORY = 1 << 30


def inspect(
    folder: Path, prompts: Sequence[Sequence[Message]], *, trained: bool = True, chats: bool = True
) -> list[str]:
    """Checks a model for sampling, and for training if it is to be `trained`. Its files are first loaded by
    transformers and jinja in a child with limits; `prompts` are rendered there if the model `chats` (a reference only
    gives log-probs of token ids). Returns the names of unused weights.

    If the weights are not on this machine yet, the rest is checked.

    Raises:
        ModelError: what is wrong, in which file, and what to do.
    """
    weights = any(folder.glob("*.safetensors"))
    if weights:
        check_files(folder, str(folder))
    else:
        check_settings(folder)
    settings.check(folder, trained=trained)
    if chats:
        own_template.check_choice(folder)
    structure.import_for(folder)

    def look(say: bounded.Say) -> list[str]:
        say("config")
        config = structure.read_config(folder)
        say("tokenizer")
        tokenizer = tokenizer_files.load(folder)
        if chats:
            say("template")
            _check_template(folder, tokenizer, prompts)
        say("model")
        return structure.check(folder, config, len(tokenizer), weights=weights, trained=trained)

    try:
        unused = bounded.run(look, seconds=_SECONDS, memory=_MEMORY)
    except bounded.OutOfBoundsError as error:
        raise _out_of_bounds(folder, error) from error
    if weights:
        finite.check(folder)
    return unused


def _check_template(folder: Path, tokenizer: Any, prompts: Sequence[Sequence[Message]]) -> None:
    try:
        check_template(tokenizer, end_ids(folder), prompts)
    except ModelError as error:
        raise error.replaced(file=own_template.where(folder)) from error
    except Exception as error:
        if type(error) is not Exception:  # which is what tokenizers raises
            raise
        raise ModelError(
            f"the tokenizer cannot read the first prompts: {error}",
            file=str(folder),
            hint="use the tokenizer that the model was trained with",
            rule="model-tokenizer-reads",
        ) from error


def end_ids(folder: Path) -> list[int]:
    """The end tokens of the model's generation config, where it has one.

    Raises:
        ModelError: transformers cannot read it.
    """
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return []
    try:
        named: Any = GenerationConfig.from_pretrained(folder).eos_token_id
    except structure.refusals() as error:
        raise ModelError(
            f"transformers cannot read it: {structure.first_line(error)}",
            file=str(folder / "generation_config.json"),
            hint="mend it, or remove it: sampling is set in the recipe",
            rule="model-generation-config",
        ) from error
    return named if isinstance(named, list) else [] if named is None else [named]


def _out_of_bounds(folder: Path, error: bounded.OutOfBoundsError) -> ModelError:
    bounds = {"time": f"{_SECONDS} seconds of a processor", "memory": f"{_MEMORY >> 30} GiB of memory"}
    how = f"takes more than {bounds[error.how]}" if error.how in bounds else f"ends the process ({error.how})"
    if error.doing == "template":
        return ModelError(
            f"rendering the first prompts with the chat template {how}",
            file=own_template.where(folder),
            hint="look for a loop or a multiplied text in it, or name another: model.chat_template: FILE",
            rule="template-out-of-bounds",
        )
    if error.doing == "tokenizer":
        return ModelError(
            f"loading the tokenizer {how}",
            file=str(folder),
            hint="fetch its files again, or save what AutoTokenizer.from_pretrained(folder) makes of them",
            rule="model-tokenizer-out-of-bounds",
        )
    return ModelError(
        f"building the model of this config, without its weights, {how}",
        file=str(folder / "config.json"),
        hint=json_files.OWN_CONFIG,
        rule="model-out-of-bounds",
    )
