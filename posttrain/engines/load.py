"""A model folder, ready to sample from: weights, tokenizer, what ends an answer, how long a text may be."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.engines.fast_linear import can_quantize
from posttrain.engines.precision import linear_shapes, sampling_dtype
from posttrain.engines.protocol import Request, SamplingParams, context_length
from posttrain.errors import ModelError
from posttrain.system import keep_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


@dataclass
class Loaded:
    """`model` is in eval mode on its device; products are to be in `dtype`. `eos_ids` are those of the generation
    config and the tokenizer."""

    model: Any
    tokenizer: Any
    dtype: torch.dtype
    eos_ids: frozenset[int]
    pad_id: int
    context: int


def pick_dtype(dtype: str, device: str, model: Any = None) -> torch.dtype:
    """The type of the products of `model`. `auto`: bfloat16 where it is clearly faster than float32, which is measured
    on a CPU (a second, once a process for models of one shape); a GPU needs no `model`.

    Raises:
        ModelError: a name other than auto, float32, bfloat16, float16 or int8; or int8 on a GPU or an older CPU.
    """
    if dtype == "auto":
        dtype = _measured(tuple(linear_shapes(model).items())) if device == "cpu" else sampling_dtype({}, device).name
    if dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}", hint=f"use auto, {', '.join(DTYPES)}", rule="model-engine-dtype")
    if dtype == "int8" and (device != "cpu" or not can_quantize()):
        raise ModelError("int8 needs a CPU with VNNI or AMX", hint="use auto", rule="model-engine-dtype")
    return DTYPES[dtype]


@functools.cache
def _measured(shapes: tuple[tuple[tuple[int, int], int], ...]) -> str:
    return sampling_dtype(dict(shapes), "cpu").name


def load(path: str | Path, dtype: str, device: str) -> Loaded:
    """Reads a model folder (or Hub id that is already cached).

    Raises:
        ModelError: the folder cannot be read, or nothing in it says what ends an answer.
    """
    from transformers import AutoModelForCausalLM

    found = read(AutoModelForCausalLM, path, loaded_dtype(dtype, device), "a causal language model")
    return prepare(*found, dtype, device)


def read(kind: Any, path: str | Path, dtype: torch.dtype, what: str) -> tuple[Any, Any]:
    """Model and tokenizer of a folder, by one of transformers' auto classes; `what` it is, for the error.

    Raises:
        ModelError: the folder cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)  # first, since it fails sooner
        return kind.from_pretrained(path, dtype=dtype), tokenizer
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot load {what} from {path}: {error}",
            file=str(path),
            hint="name a folder that save_pretrained wrote; for a recipe's model `posttrain check` says what is wrong",
            rule="model-load",
        ) from error


def prepare(model: Any, tokenizer: Any, dtype: str, device: str) -> Loaded:
    """A model in memory as `Loaded`, moved and cast in place.

    Raises:
        ModelError: neither the generation config nor the tokenizer has an end token.
    """
    chosen = pick_dtype(dtype, device, model)
    model = model.to(device=device, dtype=kept_dtype(chosen, device)).eval()
    without_router_logits(model.config)
    if device == "cpu":
        keep_memory()
    eos_ids = end_tokens(model.generation_config, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(eos_ids)
    return Loaded(model, tokenizer, chosen, eos_ids, pad_id, context_length(model.config))


def without_router_logits(config: Any) -> None:
    """Experts are balanced in training alone. Asked for in sampling, the balance is computed of a mask that holds more
    tokens than the forward does, and fails. Configs that came out of a training often ask for it."""
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False


def loaded_dtype(dtype: str, device: str) -> torch.dtype:
    """The type in which weights are read, before anything is known of the model."""
    return torch.float32 if device == "cpu" else pick_dtype(dtype, device)


def kept_dtype(chosen: torch.dtype, device: str) -> torch.dtype:
    """On a CPU everything but the matrix products stays in float32, which is faster there and more exact."""
    return torch.float32 if device == "cpu" else chosen


def end_tokens(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer: end tokens of the generation config and of the tokenizer.

    Raises:
        ModelError: there is none.
    """
    named = generation_config.eos_token_id if generation_config is not None else None
    listed = named if isinstance(named, list) else [named]
    ends = frozenset(an_id for an_id in [*listed, tokenizer.eos_token_id] if an_id is not None)
    if not ends:
        raise ModelError(
            "the model has no end-of-text token, so no answer could ever end",
            hint="set eos_token in tokenizer_config.json",
            rule="model-no-end",
        )
    return ends


def check_logits(logits: torch.Tensor, model: Any, dtype: torch.dtype) -> None:
    """Of the first ones that a process samples from: weights may be sound, and the config make nothing of them.

    logits: (rows, vocab); dtype: what they are computed in.

    Raises:
        ModelError: a row holds NaN or infinity, or nothing above minus infinity.
    """
    if torch.isfinite(logits.amax(-1)).all():  # minus infinity for single tokens is how some types forbid them
        return
    name = str(dtype).removeprefix("torch.")
    config = "compare its config.json with that of the model's authors: epsilons, rope_parameters, scales"
    raise ModelError(
        f"the model's logits are NaN or infinite, computed in {name}, so nothing can be sampled",
        file=str(model.name_or_path),
        hint=config if dtype == torch.float32 else f"try engine.dtype: float32; where that gives the same, {config}",
        rule="model-logits-not-finite",
    )


def check_lengths(context: int, requests: Sequence[Request], params: SamplingParams) -> None:
    """Raises ValueError where a prompt is empty or leaves no room for `max_new_tokens`."""
    for at, request in enumerate(requests):
        length = len(request.prompt_ids)
        if not length:
            raise ValueError(f"prompt {at} is empty")
        if length + params.max_new_tokens > context:
            raise ValueError(
                f"prompt {at} has {length} tokens; with max_new_tokens={params.max_new_tokens} "
                f"that is more than the model's context of {context}"
            )
