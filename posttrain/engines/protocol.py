"""The interface of engines. Imports neither torch nor transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    `tokens` holds the sampled ids without the one that ended the answer. `logprobs`, where the
    engine gives them, has one entry a token, natural logarithm, at temperature 1.
    """

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. `temperature` 0 is greedy and reads no seed.

    `top_p` keeps the smallest set of tokens whose probability reaches it. `stop` strings end an
    answer and are cut from its text; its `tokens` keep all that was sampled.
    """

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, not {self.temperature}")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if "" in self.stop:
            raise ValueError("an empty stop string would end every answer at once")


@dataclass(frozen=True)
class Request:
    """A prompt and one seed per completion: K = len(seeds). A completion without a seed (None) is greedy, whatever the
    temperature of the others."""

    prompt_ids: tuple[int, ...]
    seeds: tuple[int | None, ...]


@dataclass(frozen=True)
class Capabilities:
    """The features of an engine that not every one has."""

    token_ids: bool
    seeds: bool
    logprobs: bool


class Engine(Protocol):
    """Samples completions. `fallback`: why a faster engine was not used; None if it was."""

    name: str
    capabilities: Capabilities
    fallback: str | None

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """The completions of each request, in the order of requests and of their seeds.

        Raises:
            ValueError: a prompt is empty, or with `max_new_tokens` does not fit the model's context.
        """
        ...


def completion_seed(seed: int, prompt_id: str, index: int) -> int:
    """The seed of completion `index` of a prompt: 63 bits of a SHA-256, so that no two runs or prompts share draws."""
    text = f"{seed}/{prompt_id}/{index}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def context_length(config: Any) -> int:
    """How many tokens a model of this (transformers) config takes; a huge number where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30
