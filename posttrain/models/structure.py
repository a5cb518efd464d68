"""Whether a folder's weights are those of the model that its config describes: names and shapes, nothing loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError
from posttrain.models.weight_files import Tensor, headers

# What transformers raises of a config whose values it did not foresee.
REFUSALS = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_OWN = "take the config that belongs to the weights"


def check(folder: Path, tokens: int, *, weights: bool, trained: bool) -> None:
    """Builds the model on the meta device and gives it the shapes of the weights, as from_pretrained would.

    `tokens`: of the tokenizer. `weights`: whether they are here. `trained`: whether a trainer is to load it, which goes
    by `architectures`.

    Raises:
        ModelError: transformers cannot build it; its weights are quantised by what is not installed; weights are
            missing, or have names or shapes that the model does not.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    file = str(folder / "config.json")
    try:
        config = AutoConfig.from_pretrained(folder)
    except _library() as error:
        raise _refused(file, error) from error
    known = AutoModelForCausalLM._model_mapping  # what from_pretrained asks
    if type(config) not in known:
        raise ModelError(
            f"{config.model_type} is no causal language model in transformers",
            file=file,
            hint="take a model that writes text",
            rule="model-not-causal",
        )
    kind = known[type(config)]
    if trained and (config.architectures or [""])[0] != kind.__name__:
        raise ModelError(
            f"`architectures` is {config.architectures}, and what writes text is {kind.__name__}",
            file=file,
            hint=f'where the weights are a language model\'s, set "architectures": ["{kind.__name__}"]',
            rule="model-not-causal-class",
        )
    if tokens > config.get_text_config().vocab_size:
        raise ModelError(
            f"the tokenizer has {tokens} tokens, the model embeds {config.get_text_config().vocab_size}",
            file=str(folder),
            hint="use the tokenizer that the model was trained with",
            rule="model-vocabulary",
        )
    _check_quantised(config, file)
    found = _build(kind, config, headers(folder) if weights else {}, file)
    if weights:
        _check_names(folder, kind, found)


def _check_quantised(config: Any, file: str) -> None:
    said = getattr(config, "quantization_config", None)
    if said is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer

    said = said if isinstance(said, dict) else said.to_dict()
    method = str(said.get("quant_method", "some method"))
    try:
        AutoHfQuantizer.from_config(said, pre_quantized=True).validate_environment(device_map=None)
    except (ImportError, *_library()) as error:
        raise ModelError(
            f"the weights are quantised by {method[:40]}, which cannot be read here: {_first_line(error)}",
            file=file,
            hint="take the model with weights that are not quantised, or install what reads these",
            rule="model-quantised",
        ) from error


def _build(kind: Any, config: Any, tensors: Mapping[str, Tensor], file: str) -> Mapping[str, Any]:
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
    except ImportError as error:
        raise _no_attention(config, file, error) from error
    except _library() as error:
        if "attn_implementation" in str(error):
            raise _no_attention(config, file, error) from error
        raise _refused(file, error) from error
    return found


def _on_meta(tensor: Tensor) -> Any:
    import torch

    dtype = getattr(torch, _DTYPES.get(tensor.dtype, "uint8"))
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


def _check_names(folder: Path, kind: Any, found: Mapping[str, Any]) -> None:
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    shapes = sorted(found["mismatched_keys"], key=str)
    if shapes:
        name, saved, wanted = shapes[0]
        more = f"; and {len(shapes) - 1} more" if shapes[1:] else ""
        raise ModelError(
            f"{name} has the shape {tuple(saved)}, and by the config {tuple(wanted)}{more}",
            file=str(folder),
            hint=_OWN,
            rule="model-weights-shape",
        )
    if missing:
        others = f"; {_told(unexpected)} are there, which it does not have" if unexpected else ""
        raise ModelError(
            f"{_told(missing)} of {kind.__name__} are not among the weights, and would be left at random{others}",
            file=str(folder),
            hint="save the model with save_pretrained, whose names these are; or take the config that belongs to it",
            rule="model-weights-missing",
        )
    inside = [name for name in unexpected if _inside(name, kind)]
    if inside:
        raise ModelError(
            f"{_told(inside)} are among the weights, which {kind.__name__} by this config does not have",
            file=str(folder),
            hint=_OWN,
            rule="model-weights-unexpected",
        )


def _inside(name: str, kind: Any) -> bool:
    """Whether a weight belongs to a part that the model has, rather than to another beside it (a value head, say)."""
    return name.startswith(f"{kind.base_model_prefix}.")


def _told(names: Sequence[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:3])
    return f"{len(names)} ({shown}{', …' if names[3:] else ''})"


def _refused(file: str, error: BaseException) -> ModelError:
    return ModelError(
        f"transformers cannot build a model of this config: {_first_line(error)}",
        file=file,
        hint=_OWN,
        rule="model-config-values",
    )


def _no_attention(config: Any, file: str, error: BaseException) -> ModelError:
    asked = getattr(config, "_attn_implementation", None)
    return ModelError(
        f"the config asks for the attention {asked!r}, which is not here: {_first_line(error)}",
        file=file,
        hint="take attn_implementation out of the config, or install what it needs",
        rule="model-attention",
    )


def _library() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import StrictDataclassError

    return (*REFUSALS, StrictDataclassError)


def _first_line(error: BaseException) -> str:
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
