"""Section: the model, and its adapters."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from posttrain.config.keys import KeyedUnlessDefault, NotInKey
from posttrain.config.section import MOST, Count, Section


class Lora(Section):
    """LoRA instead of full fine-tuning; the names are peft's."""

    r: Count = 16
    """Rank of the adapters."""
    lora_alpha: float = Field(default=32, gt=0, le=MOST)
    """Scale of the adapters: lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    target_modules: str | list[str] = "all-linear"
    """Which layers get an adapter."""
    adapters: Annotated[Literal["merge", "keep"], KeyedUnlessDefault()] = "merge"
    """`merge`: the artifact is the merged model; `keep`: the adapter is saved too, in `adapter/`."""
    load_in_4bit: Annotated[bool, KeyedUnlessDefault()] = False
    """QLoRA: the trained model is loaded in 4 bits (NF4). Needs bitsandbytes and a CUDA GPU."""


class Model(Section):
    """The base model. Everything starts from it in round 1. Its content is an external hash."""

    path: Annotated[str, NotInKey()]
    """A shipped name, a folder (with a slash), or a Hub id such as `owner/name`."""
    revision: Annotated[str | None, NotInKey()] = None
    """Branch, tag or commit of a Hub id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which models are saved."""
    attention: Annotated[Literal["auto", "eager", "sdpa"], KeyedUnlessDefault()] = "auto"
    """Attention of a training, by its name in transformers; auto: the one that is measured to be faster with the
    model's shapes."""
    lora: Lora | None = None
    """LoRA adapters instead of full fine-tuning."""
    chat_template: Annotated[str | None, NotInKey()] = None
    """A chat template in place of the model's default, or for a model without one: a file (with a slash, from the
    recipe's folder), `plain.jinja`, which is shipped, or the name of one of the model's own. Its content is hashed;
    trained models are saved with it."""

    refused: ClassVar[dict[str, str]] = {
        "trust_remote_code": "no code that comes with a model is run; choose an architecture that transformers has"
    }
    renamed: ClassVar[dict[str, str]] = {"name": "path", "torch_dtype": "dtype", "model_name_or_path": "path"}


def is_template_file(chosen: str) -> bool:
    """Whether a `chat_template` is a file, one's own or a shipped one, and not the name of one of the model's own."""
    return "/" in chosen or chosen.endswith(".jinja")
