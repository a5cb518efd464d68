"""Goes on from beginnings of answers: samples what follows, and checks the answers that come to their end."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.steps import tokens_of_steps
from posttrain.engines.detokenize import DECODE
from posttrain.engines.protocol import Completion, Request, SamplingParams, completion_seed
from posttrain.rewards import RewardFunction
from posttrain.rewards.combine import RIGHT, combine
from posttrain.rewards.scoring import reward_values
from posttrain.rollouts import cached_engine, cached_tokenizer
from posttrain.search.drawn import Path

ROOM = 32  # what is sampled together may become so many tokens longer than its own room, and is cut then


@dataclass(frozen=True)
class Asked:
    """A prompt: its `place` among all, its row (prompt_id, prompt, columns), and its token ids."""

    place: int
    row: Mapping[str, Any]
    ids: Path


@dataclass(frozen=True)
class Beginning:
    """The beginning of an answer to a prompt, to be gone on from `count` times; `before`: how often it was already."""

    asked: Asked
    path: Path
    count: int
    before: int = 0


@dataclass(frozen=True)
class Setting:
    """How answers are sampled and checked. `policy`: what samples, `use` and `dtype` as in the recipe's `engine`;
    `ends`: the texts that end a step; `functions` with `weights`: the checker."""

    policy: str
    use: str
    dtype: str
    seed: int
    temperature: float
    max_new_tokens: int
    ends: tuple[str, ...]
    functions: tuple[RewardFunction, ...]
    weights: Mapping[str, float]


@dataclass
class Sampled:
    """What was sampled behind a beginning: its tokens, of which `step` are its first step, and how many there were
    before it was cut. `ended`: the answer came to its end; `value`: the checker's, then."""

    tokens: Path
    logprobs: tuple[float, ...] | None
    step: int
    cost: int
    ended: bool
    value: float | None = None

    @property
    def right(self) -> bool:
        return self.value is not None and self.value >= RIGHT


class Continuing:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.engine = cached_engine(setting.policy, setting.use, setting.dtype)
        self.tokenizer = cached_tokenizer(setting.policy)
        self.separator = separator(setting.ends)

    def sampled(self, beginnings: Sequence[Beginning], by_step: bool = False) -> list[list[Sampled]]:
        """What follows each beginning: the answer, or with `by_step` its next step. Answers that end are checked.

        Those with about as much room left are sampled together.
        """
        setting, stop = self.setting, tuple(self.setting.ends) if by_step else ()
        rooms = [setting.max_new_tokens - len(one.path) for one in beginnings]
        together: dict[int, list[int]] = {}
        for at, room in enumerate(rooms):
            together.setdefault(-(-room // ROOM), []).append(at)
        found: dict[int, list[Sampled]] = {}
        for places in together.values():
            params = SamplingParams(setting.temperature, max(rooms[at] for at in places), stop=stop)
            made = self.engine.generate([self._request(beginnings[at]) for at in places], params)
            for at, completions in zip(places, made, strict=True):
                found[at] = [self._cut(one, rooms[at], by_step) for one in completions]
        sampled = [found[at] for at in range(len(beginnings))]
        self._check(beginnings, sampled)
        return sampled

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), **DECODE)

    def steps(self, tokens: Sequence[int]) -> list[int]:
        """How many tokens each step has."""
        return tokens_of_steps(tokens, self.decode, self.separator)

    def _request(self, one: Beginning) -> Request:
        """Seeds follow from the prompt, the beginning, and how often it was gone on from."""
        begun = hashlib.sha256(json.dumps(one.path).encode()).hexdigest()
        name = f"{one.asked.row['prompt_id']}/{begun}"
        seeds = (completion_seed(self.setting.seed, name, one.before + at) for at in range(one.count))
        return Request((*one.asked.ids, *one.path), tuple(seeds))

    def _cut(self, completion: Completion, room: int, by_step: bool) -> Sampled:
        """A completion, cut to its own room. One that a stop string ended has that in its tokens, but not in its
        text."""
        tokens, cost = completion.tokens[:room], len(completion.tokens)
        ended = completion.finish == "stop" and cost <= room
        if ended and by_step:
            ended = self.decode(tokens) == completion.text
        sizes = [] if by_step else [size for size in self.steps(tokens) if size]
        step = sizes[0] if len(sizes) > 1 else len(tokens)
        logprobs = None if completion.logprobs is None else completion.logprobs[:room]
        return Sampled(tokens, logprobs, step, cost, ended)

    def _check(self, beginnings: Sequence[Beginning], sampled: Sequence[Sequence[Sampled]]) -> None:
        """Notes the checker's value of every answer that came to its end."""
        ended = [
            (one.asked.row, (*one.path, *made.tokens), made)
            for one, some in zip(beginnings, sampled, strict=True)
            for made in some
            if made.ended
        ]
        rows = [
            {**row, "completion": [{"role": "assistant", "content": self.decode(path)}], "tokens": path}
            for row, path, _ in ended
        ]
        given = reward_values(rows, self.setting.functions) if rows else {}
        for at, (_, _, made) in enumerate(ended):
            made.value = combine({name: some[at] for name, some in given.items()}, self.setting.weights)


def separator(ends: Sequence[str]) -> str:
    """The regular expression of what ends a step."""
    return f"(?:{'|'.join(map(re.escape, ends))})+"
