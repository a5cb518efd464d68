"""The features and request formats of each kind of OpenAI-compatible server.

Imports neither torch nor an HTTP library: recipes are checked against it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.engines.protocol import Capabilities, SamplingParams
from posttrain.errors import EngineError


@dataclass(frozen=True)
class ServerSettings:
    """Which server: its kind (a key of DIALECTS), and the words that start it or the address where one runs.

    `log` is the file that takes the output of a server that is started here. `devices`: how many GPUs it has, `gpus`
    which, as CUDA_VISIBLE_DEVICES names them; None: all.
    """

    kind: str
    start: tuple[str, ...] | None
    url: str | None
    log: str
    devices: int | None = None
    gpus: str | None = None

    def each(self, there: Sequence[str]) -> list[ServerSettings]:
        """One server for every `devices` of the GPUs `there`; this one if it has all of them, or there is none.

        Raises:
            EngineError: there are fewer than one server needs.
        """
        size = self.devices
        if size is None or not there:
            return [self]
        if len(there) < size:
            raise EngineError(
                f"a server needs {size} GPUs (`engine.server.devices`), and {len(there)} can be used here: lower it, "
                "or leave it out",
                rule="server-devices",
            )
        log = Path(self.log)
        return [
            replace(self, gpus=",".join(there[at : at + size]), log=str(log.with_stem(f"{log.stem}-{at // size}")))
            for at in range(0, len(there) - size + 1, size)
        ]


@dataclass(frozen=True)
class Ends:
    """What ends an answer, and what fills a batch; ids of the policy's tokenizer."""

    eos_ids: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True)
class Dialect:
    """One kind of server.

    `token_prompts`: it takes a prompt as ids; otherwise the prompt's text is sent. `at_once`: how many requests keep
    it busy. `served`: the address at which it says what it serves; None: it checks the `model` of each request.
    `refused`: options of its command that would make wrong samples, and why. `body`: a request's sampling fields.
    """

    capabilities: Capabilities
    token_prompts: bool
    at_once: int
    served: str | None
    body: Callable[[SamplingParams, Ends], dict[str, Any]]
    refused: Mapping[str, str] = field(default_factory=dict)


def _exact(params: SamplingParams, ends: Ends) -> dict[str, Any]:
    """vLLM and SGLang. What is left out of a request they take from the model's generation_config.json, top_k too."""
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop": list(params.stop),
        "stop_token_ids": list(ends.eos_ids),
        "return_token_ids": True,
    }


def _vllm(params: SamplingParams, ends: Ends) -> dict[str, Any]:
    return {**_exact(params, ends), "logprobs": 0}  # 0: of the sampled token alone


def _tgi(params: SamplingParams, ends: Ends) -> dict[str, Any]:
    body: dict[str, Any] = {"temperature": params.temperature}
    if params.top_p < 1:  # 1 is refused
        body["top_p"] = params.top_p
    return {**body, "stop": list(params.stop)} if params.stop else body


def _transformers(params: SamplingParams, ends: Ends) -> dict[str, Any]:
    """`temperature` alone does not switch sampling on, and top_k would be 50: a whole generation config does both."""
    config: dict[str, Any] = {
        "do_sample": params.temperature > 0,
        "max_new_tokens": params.max_new_tokens,
        "eos_token_id": list(ends.eos_ids),
        "pad_token_id": ends.pad_id,
    }
    if params.temperature > 0:
        config |= {"temperature": params.temperature, "top_p": params.top_p, "top_k": 0}
    body: dict[str, Any] = {"generation_config": json.dumps(config)}
    return {**body, "stop": list(params.stop)} if params.stop else body


DIALECTS = {
    "vllm": Dialect(Capabilities(token_ids=True, seeds=True, logprobs=True), True, 256, "/v1/models", _vllm),
    # Seeds count only where it was started with --enable-deterministic-inference; its log-probabilities are those at
    # the sampling temperature, ours are those at temperature 1.
    "sglang": Dialect(Capabilities(token_ids=True, seeds=False, logprobs=False), True, 256, "/get_model_info", _exact),
    "tgi": Dialect(Capabilities(token_ids=False, seeds=True, logprobs=False), False, 128, "/info", _tgi),
    # A request sets the seed of the whole process as it arrives: with two at once they would take each other's. One
    # after the other costs nothing, since it computes them so.
    "transformers": Dialect(
        Capabilities(token_ids=False, seeds=True, logprobs=False),
        False,
        1,
        None,
        _transformers,
        {"--continuous-batching": "every request would be sampled with the settings of the first"},
    ),
}


def find_command(word: str) -> str | None:
    """The program that a command's first word names: beside this interpreter, or on PATH."""
    beside = os.path.dirname(sys.executable)
    return shutil.which(word, path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))


# Servers that listen on every address of the machine unless they are told otherwise: program, and the option.
_OPEN = {"vllm": "--host", "text-generation-launcher": "--hostname"}


def loopback(start: Sequence[str]) -> list[str]:
    """The words that keep a server of this command to this machine; none where it says itself, or does so anyway."""
    for before, word in zip(["", *start], start[:3], strict=False):
        named = before in ("", "-m", "run")  # `vllm serve`, `python -m vllm.entrypoints…`, `uv run vllm serve`
        option = _OPEN.get(os.path.basename(word).partition(".")[0]) if named else None
        if option and not any(each.startswith(option) for each in start):
            return [option, "127.0.0.1"]
    return []


def command(start: Sequence[str], model: str, port: int) -> list[str]:
    """The words with `{model}` and `{port}` filled in. Other braces stay: a word may be JSON."""
    return [word.replace("{model}", model).replace("{port}", str(port)) for word in start]
