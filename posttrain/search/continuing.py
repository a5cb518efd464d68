"""Goes on from beginnings of answers: samples what follows, and checks the answers that come to their end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

from posttrain.config.search import Search
from posttrain.config.step_reward import StepLabels
from posttrain.data.steps import tokens_of_steps
from posttrain.engines.detokenize import DECODE
from posttrain.engines.protocol import Completion, Request, SamplingParams, completion_seed
from posttrain.job import Job
from posttrain.models import context_length
from posttrain.rewards import RewardFunction
from posttrain.rewards.combine import RIGHT, combine
from posttrain.rewards.scoring import Scorers, reward_values
from posttrain.rollouts import cached_engine, cached_tokenizer
from posttrain.search.drawn import Path

_ROOM = 32  # what is sampled together may become so many tokens longer than its own room, and is cut then


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

    @classmethod
    def of(cls, job: Job, section: Search | StepLabels, scorers: Scorers, weights: Mapping[str, float]) -> Setting:
        """That of a stage whose input `policy` samples. `weights`: of the functions."""
        engine, ends = job.config["engine"], tuple(job.config["step_ends"])
        how = (str(job.inputs["policy"]), engine["use"], engine["dtype"], job.seed)
        return cls(*how, section.temperature, section.max_new_tokens, ends, scorers.rewards, weights)


@dataclass
class Sampled:
    """What was sampled behind a beginning: its tokens, of which `step` are its first step, and how many were drawn, its
    end and what was cut off included. `ended`: the answer came to its end; `value`: the checker's, then."""

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
        self.context = context_length(Folder(setting.policy))

    @property
    def fallback(self) -> str | None:
        """Why a slower engine samples."""
        return self.engine.fallback

    def sampled(self, beginnings: Sequence[Beginning], by_step: bool = False) -> list[list[Sampled]]:
        """What follows each beginning: the answer, or with `by_step` its next step. Answers that end are checked.

        Those with about as much room left are sampled together.
        """
        setting, stop = self.setting, tuple(self.setting.ends) if by_step else ()
        rooms = [setting.max_new_tokens - len(one.path) for one in beginnings]
        together: dict[int, list[int]] = {}
        for at, (one, room) in enumerate(zip(beginnings, rooms, strict=True)):
            shared = -(-room // _ROOM) * _ROOM
            fits = len(one.asked.ids) + len(one.path) + shared <= self.context
            together.setdefault(shared if fits else room, []).append(at)
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
        return tokens_of_steps(tokens, self.decode, self.setting.ends)

    def _request(self, one: Beginning) -> Request:
        """Seeds follow from the prompt, the beginning, and how often it was gone on from."""
        begun = hashlib.sha256(json.dumps(one.path).encode()).hexdigest()
        name = f"{one.asked.row['prompt_id']}/{begun}"
        seeds = (completion_seed(self.setting.seed, name, one.before + at) for at in range(one.count))
        return Request((*one.asked.ids, *one.path), tuple(seeds))

    def _cut(self, completion: Completion, room: int, by_step: bool) -> Sampled:
        """A completion, cut to its own room. One that a stop string ended has that in its tokens, but not in its
        text."""
        tokens = completion.tokens[:room]
        whole = completion.finish == "stop" and not (by_step and self.decode(completion.tokens) != completion.text)
        ended = whole and len(completion.tokens) < room  # its end is a token, too
        step = len(tokens) if by_step else self._first_step(tokens)
        logprobs = None if completion.logprobs is None else completion.logprobs[:room]
        return Sampled(tokens, logprobs, step, len(completion.tokens) + whole, ended)

    def _first_step(self, tokens: Path) -> int:
        """How many tokens the first step has that has any; all of them where it is the only one."""
        for most in (2, None):
            sizes = tokens_of_steps(tokens, self.decode, self.setting.ends, most)
            if len(sizes) < 2:
                return len(tokens)
            if sizes[0]:
                return sizes[0]
        return next((size for size in sizes if size), len(tokens))

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


def slow(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """For a stage's metrics: why a slower engine than the recipe's sampled, if it did. rows: with `fallback`."""
    reason = next((row["fallback"] for row in rows if row["fallback"]), None)
    return {"fallback": [f"answers are sampled one by one, which takes longer: {reason}"]} if reason else {}
