"""Engines behind one protocol. `load_engine` picks one; torch is imported only then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from posttrain.engines.protocol import Capabilities, Engine, Request, SamplingParams, completion_seed
from posttrain.engines.server_dialects import ServerSettings

if TYPE_CHECKING:
    from posttrain.engines.load import Loaded

__all__ = [
    "Capabilities",
    "Engine",
    "Request",
    "SamplingParams",
    "ServerSettings",
    "completion_seed",
    "engine_on",
    "load_engine",
]


def load_engine(
    model_path: str | Path,
    use: Literal["shared-prefix", "plain"] = "shared-prefix",
    dtype: str = "auto",
    device: str = "cpu",
) -> Engine:
    """The engine of that name on a model folder. Where the shared-prefix engine does not fit the model,
    the plain one comes back and its `fallback` says why. For a server: `server.ServerEngine`.

    Raises:
        ModelError: the folder cannot be loaded, or has no end token.
    """
    from posttrain.engines.load import load

    return engine_on(load(model_path, dtype, device), use)


def engine_on(loaded: Loaded, use: Literal["shared-prefix", "plain"] = "shared-prefix") -> Engine:
    """As `load_engine`, on a model in memory, which is changed in place."""
    from posttrain.engines.attention import Unsupported
    from posttrain.engines.decoder import LeanDecoder
    from posttrain.engines.plain import PlainEngine
    from posttrain.engines.shared_prefix import SharedPrefixEngine

    if use == "plain":
        return PlainEngine(loaded)
    if use != "shared-prefix":
        raise ValueError(f"no engine {use!r} runs in this process")
    try:
        engine = SharedPrefixEngine(loaded)
        if isinstance(engine.decoder, LeanDecoder):
            loaded.model.model.layers.to("meta")  # it has its own copy: this one's memory is given back
        return engine
    except Unsupported as error:
        return PlainEngine(loaded, fallback=f"shared-prefix does not fit {loaded.model.config.model_type}: {error}")
