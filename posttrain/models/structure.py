"""Checks that a folder's weights fit the model of its config: names and shapes, without loading them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError, in_file
from posttrain.models import json_files
from posttrain.models.weight_files import FLOATS, Tensor, headers, some

_MASK = re.compile(r"\.(masked_bias|causal_mask)$|\.attn(\.attention)?\.bias$")


def import_for(folder: Path) -> None:
    """Imports the classes of a model's type here, so that no child that is forked does so for itself."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(json_files.read(folder / "config.json").get("model_type")))
    if isinstance(name, str):
        getattr(transformers, name, None)


def read_config(folder: Path) -> Any:
    """The config as transformers reads it.

    Raises:
        ModelError: transformers does not know the type of model, or it takes other values.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    with in_file(folder / "config.json"):
        name = json_files.read(folder / "config.json").get("model_type")
        if str(name) not in CONFIG_MAPPING_NAMES:
            problem = f"model_type is {str(name)[:80]!r}, which this version of transformers does not have"
            hint = "take a newer transformers, or a model whose architecture it has"
            raise ModelError(problem, hint=hint, rule="model-type-unknown")
        try:
            return AutoConfig.from_pretrained(folder)
        except refusals() as error:
            raise _refused(error) from error


def check(folder: Path, config: Any, tokens: int, *, weights: bool, trained: bool) -> list[str]:
    """Builds the model on the meta device and gives it the shapes of the weights, as from_pretrained would. Returns the
    names of weights that belong to no part of it, such as those of a value head.

    `tokens`: of the tokenizer. `weights`: whether they are here. `trained`: whether a trainer is to load it, which goes
    by `architectures`.

    Raises:
        ModelError: transformers cannot build it; its weights are quantised by what is not installed; weights are
            missing, or have names or shapes that the model does not.
    """
    with in_file(folder / "config.json"):
        kind = _causal_class(config, trained)
    embeds = getattr(config.get_text_config(), "vocab_size", None)
    if embeds is not None and tokens > embeds:
        problem = f"the tokenizer has {tokens} tokens, the model embeds {embeds}"
        hint = "use the tokenizer that the model was trained with"
        raise ModelError(problem, file=str(folder), hint=hint, rule="model-vocabulary")
    with in_file(folder / "config.json"):
        _check_quantised(config)
        if weights:
            _check_floats(folder, config)
        found = _build(kind, config, headers(folder) if weights else {})
    with in_file(folder):
        return _check_names(kind, found) if weights else []


def _causal_class(config: Any, trained: bool) -> Any:
    from transformers import AutoModelForCausalLM

    known = AutoModelForCausalLM._model_mapping  # what from_pretrained asks
    if type(config) not in known:
        problem = f"{config.model_type} is no causal language model in transformers"
        raise ModelError(problem, hint="take a model that writes text", rule="model-not-causal")
    kind: Any = known[type(config)]
    if trained and (config.architectures or [""])[0] != kind.__name__:
        problem = f"`architectures` is {config.architectures}, and the class that generates text is {kind.__name__}"
        hint = f'where the weights are a language model\'s, set "architectures": ["{kind.__name__}"]'
        raise ModelError(problem, hint=hint, rule="model-not-causal-class")
    return kind


def _check_quantised(config: Any) -> None:
    said = getattr(config, "quantization_config", None)
    if said is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer

    said = said if isinstance(said, dict) else said.to_dict()
    method = str(said.get("quant_method", "some method"))
    try:
        AutoHfQuantizer.from_config(said, pre_quantized=True).validate_environment(device_map=None)
    except (ImportError, *refusals()) as error:
        raise ModelError(
            f"the weights are quantised by {method[:40]}, which cannot be read here: {first_line(error)}",
            hint="take the model with weights that are not quantised, or install what reads these",
            rule="model-quantised",
        ) from error


def _check_floats(folder: Path, config: Any) -> None:
    """Weights of a linear layer are floating-point numbers, unless the config says how they were quantised."""
    if getattr(config, "quantization_config", None) is not None:
        return
    for name, tensor in headers(folder).items():
        if name.endswith(".weight") and tensor.dtype not in FLOATS:
            raise ModelError(
                f"{name} is saved as {tensor.dtype}, and the config has no quantization_config that says what it means",
                file=str(tensor.file),
                hint="save the weights as bfloat16, float16 or float32, or take the config that belongs to them",
                rule="model-weights-integers",
            )


def _build(kind: Any, config: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """What from_pretrained says of missing, unexpected and mismatched keys; `tensors` are given as their shapes."""
    import torch

    given = {name: _on_meta(tensor) for name, tensor in tensors.items()}
    try:
        with _quiet():
            _, found = kind.from_pretrained(
                None,
                config=config,
                state_dict=given,
                device_map={"": "meta"},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (ImportError, *refusals()) as error:
        if isinstance(error, ImportError) or "attn_implementation" in str(error):
            raise _no_attention(config, error) from error
        raise _refused(error) from error
    return found


def _on_meta(tensor: Tensor) -> Any:
    import torch

    dtype = getattr(torch, FLOATS.get(tensor.dtype, "uint8"))
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


def _check_names(kind: Any, found: Mapping[str, Any]) -> list[str]:
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    shapes = sorted(found["mismatched_keys"], key=str)
    if shapes:
        name, saved, wanted = shapes[0]
        more = f"; and {len(shapes) - 1} more" if shapes[1:] else ""
        problem = f"{name} has the shape {tuple(saved)}, and by the config {tuple(wanted)}{more}"
        raise ModelError(problem, hint=json_files.OWN_CONFIG, rule="model-weights-shape")
    if missing:
        others = f"; {_told(unexpected)} are there, which it does not have" if unexpected else ""
        raise ModelError(
            f"{_told(missing)} of {kind.__name__} are not among the weights, and would be left at random{others}",
            hint="save the model with save_pretrained, whose names these are; or take the config that belongs to it",
            rule="model-weights-missing",
        )
    inside = [name for name in unexpected if _inside(name, kind)]
    if inside:
        problem = f"{_told(inside)} are among the weights, which {kind.__name__} by this config does not have"
        raise ModelError(problem, hint=json_files.OWN_CONFIG, rule="model-weights-unexpected")
    return unexpected


def _inside(name: str, kind: Any) -> bool:
    """Whether a weight belongs to a part that the model has, rather than to another beside it (a value head, say), or
    is a causal mask that older versions of transformers saved."""
    return name.startswith(f"{kind.base_model_prefix}.") and not _MASK.search(name)


def unused(names: Sequence[str]) -> str:
    """The message about weights that the model does not use."""
    return f"weights beside the model's own are not used: {_told(names)}"


def _told(names: Sequence[str]) -> str:
    return f"{len(names)} ({some(names)})"


def _refused(error: BaseException) -> ModelError:
    problem = f"transformers cannot build a model of this config: {first_line(error)}"
    return ModelError(problem, hint=json_files.OWN_CONFIG, rule="model-config-values")


def _no_attention(config: Any, error: BaseException) -> ModelError:
    implementation = getattr(config, "_attn_implementation", None)
    return ModelError(
        f"the config asks for the attention {implementation!r}, which is not here: {first_line(error)}",
        hint="take attn_implementation out of the config, or install what it needs",
        rule="model-attention",
    )


def refusals() -> tuple[type[Exception], ...]:
    """The exceptions that transformers raises for files with unexpected values."""
    from huggingface_hub.errors import StrictDataclassError

    return (
        StrictDataclassError, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
        RuntimeError, AssertionError,
    )  # fmt: skip


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the table of keys and the bar, which are for whoever loads a model by hand."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
