"""Validates the settings of a model folder before transformers reads them: types, dtypes, ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError, in_file
from posttrain.models import json_files

_DTYPES = {"float32", "float16", "bfloat16", "float64", "half", "float", "double"}
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TYPES: dict[str, tuple[type, ...]] = {
    "model_max_length": (int, float),
    "tokenizer_class": (str,),
    "extra_special_tokens": (list, dict),
    "additional_special_tokens": (list,),
    "added_tokens_decoder": (dict,),
    "padding_side": (str,),
    "truncation_side": (str,),
    "model_input_names": (list,),
}
_WORDS = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
_ROTARY = ("rope_parameters", "rope_scaling")
_BASES = ("rope_theta", "rope_local_base_freq", "rotary_emb_base")
_MEND = "set it to what the model's authors have, or take it out"


def check(folder: Path, *, trained: bool) -> None:
    """Raises ModelError: a setting of the config, the generation config or the tokenizer's is of a type or value that
    no model has; or where it is to be `trained`, that what trains it goes by."""
    config = json_files.read(folder / "config.json")
    generation = json_files.read(folder / "generation_config.json")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    size = text.get("vocab_size") if isinstance(text, dict) else None
    with in_file(folder / "config.json"):
        for part in _parts(config):
            _check_dtype(part)
            _check_ranges(part)
            _check_rotations(part)
        if trained:
            _check_architectures(config)
        _check_ids(config, size)
    with in_file(folder / "generation_config.json"):
        _check_ids(generation, size)
    with in_file(folder / "tokenizer_config.json"):
        _check_tokenizer(json_files.read(folder / "tokenizer_config.json"))
    with in_file(folder / "special_tokens_map.json"):
        _check_tokens(json_files.read(folder / "special_tokens_map.json"))


def _parts(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config, and those of its parts."""
    yield config
    for key, value in config.items():
        if key.endswith("_config") and key != "quantization_config" and isinstance(value, dict):
            yield value


def _check_dtype(config: dict[str, Any]) -> None:
    for key in ("dtype", "torch_dtype"):
        said = config.get(key)
        names = list(said.values()) if isinstance(said, dict) else [said]
        for name in names:
            if name is not None and (not isinstance(name, str) or name.removeprefix("torch.") not in _DTYPES):
                raise ModelError(
                    f"{key} is {str(name)[:80]!r}, which is not a dtype of weights",
                    hint="set it to float32, bfloat16 or float16: the type in which the weights are saved",
                    rule="model-dtype",
                )


def _check_ranges(config: dict[str, Any]) -> None:
    """What only a forward, or a training one, would meet: by the ends of the names that transformers gives them."""
    for key, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        share = key.endswith(("dropout", "_pdrop", "_dropout_prob"))
        small = key.endswith(("_eps", "_epsilon"))
        if (share and not 0 <= value <= 1) or (small and not 0 < value < 1):
            raise ModelError(f"{key} is {value}; it lies between 0 and 1", hint=_MEND, rule="model-config-range")


def _check_rotations(config: dict[str, Any]) -> None:
    """What rotary positions are computed from, and divided by: of 0 come NaNs, which attention may take for nothing to
    attend to, so that the model writes as if it had read nothing."""
    waiting = [("", config)]
    while waiting:
        within, part = waiting.pop()
        for key, value in part.items():
            rotary = within or key in _ROTARY
            if isinstance(value, dict) and rotary:  # in newer configs one for each kind of layer
                waiting.append((within or key, value))
            divides = key.endswith(_BASES) or (within and key in ("factor", "original_max_position_embeddings"))
            if divides and isinstance(value, int | float) and not 0 < value < float("inf"):
                problem = f"{key} is {value}; positions are computed from it, so it must be above 0"
                raise ModelError(problem, hint=_MEND, rule="model-config-range")


def _check_architectures(config: dict[str, Any]) -> None:
    said = config.get("architectures")
    if not isinstance(said, list) or not said or not all(isinstance(name, str) for name in said):
        raise ModelError(
            "the config does not say in `architectures` which class of transformers the model is",
            hint='add it, as in "architectures": ["LlamaForCausalLM"]',
            rule="model-architectures",
        )


def _check_ids(settings: dict[str, Any], size: Any) -> None:
    """`size`: of the vocabulary, where it is a number."""
    if not isinstance(size, int) or isinstance(size, bool):
        return
    pad = settings.get("pad_token_id")
    if pad is not None and not _is_id(pad, size) and pad != -1:  # the first conversions of Llama say -1 for none
        raise ModelError(
            f"pad_token_id is {str(pad)[:40]}, and the vocabulary has {size:,} tokens",
            hint="set it to the id of the tokenizer's padding token, or to null",
            rule="model-padding-id",
        )
    ends = settings.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and not _is_id(end, size) and end != -1:
            raise ModelError(
                f"eos_token_id is {str(end)[:40]}, and the vocabulary has {size:,} tokens",
                hint="set it to the id of the token that ends an answer",
                rule="model-end-id",
            )


def _is_id(value: Any, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size


def _check_tokenizer(settings: dict[str, Any]) -> None:
    for key, types in _TYPES.items():
        if settings.get(key) is not None and not isinstance(settings[key], types):
            raise _odd(key, settings[key], " or ".join(sorted({_WORDS[one] for one in types})))
    _check_tokens(settings)


def _check_tokens(settings: dict[str, Any]) -> None:
    for key in _TOKENS:
        token = settings.get(key)
        if token is not None and not _is_token(token):
            raise _odd(key, token, "a text, or an object with its `content`")


def _is_token(token: Any) -> bool:
    return isinstance(token, str) or (isinstance(token, dict) and isinstance(token.get("content"), str))


def _odd(key: str, value: Any, wanted: str) -> ModelError:
    return ModelError(
        f"{key} is {str(value)[:60]!r} ({type(value).__name__}), where {wanted} is expected",
        hint=_MEND,
        rule="model-tokenizer-setting",
    )
