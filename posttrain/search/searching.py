"""Searches for answers to several prompts at once: what their methods ask for is sampled together."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from posttrain.config.search import Search
from posttrain.data.steps import tokens_of_steps
from posttrain.engines.detokenize import DECODE
from posttrain.engines.protocol import Completion, Engine, Request, SamplingParams, completion_seed
from posttrain.rewards import RewardFunction
from posttrain.rewards.combine import RIGHT, combine
from posttrain.rewards.scoring import reward_values
from posttrain.rollouts import cached_engine, cached_tokenizer
from posttrain.search.beam import Beam
from posttrain.search.drawn import Drawn, Method, Path
from posttrain.search.step_scorer import StepScorer
from posttrain.search.tree import Tree

# Of one prompt: its place; the tokens that were sampled, the answers that came to their end, and those of them that had
# no value; the right answer, its text and the scores of its steps, and the wrong one that goes with it longest.
FOUND = pa.schema(
    [
        ("place", pa.int64()),
        ("sampled", pa.int64()),
        ("answers", pa.int64()),
        ("unchecked", pa.int64()),
        ("found", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("wrong", pa.list_(pa.int32())),
        ("wrong_text", pa.string()),
        ("step_scores", pa.list_(pa.float64())),
    ]
)
ROOM = 32  # what is sampled together may become so many tokens longer than its own room, and is cut then


@dataclass(frozen=True)
class Asked:
    """A prompt to search for: its `place` among all, its row (prompt_id, prompt, columns), and its token ids."""

    place: int
    row: Mapping[str, Any]
    ids: Path


@dataclass(frozen=True)
class Shard:
    """Prompts that are searched for together. `policy`: what samples, `use` and `dtype` as in the recipe's `engine`;
    `functions` with `weights`: the checker; `scorer`: of steps, None where nothing scores them."""

    asked: tuple[Asked, ...]
    section: Search
    policy: str
    use: str
    dtype: str
    seed: int
    functions: tuple[RewardFunction, ...]
    weights: Mapping[str, float]
    scorer: StepScorer | None


@dataclass
class _Sampled:
    """What was sampled behind a beginning: its tokens, of which `step` are its first step, and how many there were
    before it was cut. `ended`: the answer came to its end; `value`: the checker's, then."""

    tokens: Path
    logprobs: tuple[float, ...] | None
    step: int
    cost: int
    ended: bool
    value: float | None = None

    def drawn(self, score: float | None) -> Drawn:
        logprob = None if self.logprobs is None else sum(self.logprobs[: self.step])
        step, rest = self.tokens[: self.step], self.tokens[self.step :]
        return Drawn(step, rest, self.ended, self.value, score, logprob)


@dataclass
class _Prompt:
    """A search under way. `drawn`: how often a beginning was gone on from; `wrong`: answers that came to an end."""

    asked: Asked
    method: Method
    drawn: Counter[Path] = field(default_factory=Counter)
    tokens: int = 0
    answers: int = 0
    unchecked: int = 0
    found: Path | None = None
    wrong: list[Path] = field(default_factory=list)


def search(shard: Shard) -> pa.Table:
    """A row of FOUND for each prompt, in their order."""
    return _Searching(shard, cached_engine(shard.policy, shard.use, shard.dtype)).all()


class _Searching:
    def __init__(self, shard: Shard, engine: Engine) -> None:
        self.shard, self.engine, self.section = shard, engine, shard.section
        self.tokenizer = cached_tokenizer(shard.policy)
        self.separator = f"(?:{'|'.join(map(re.escape, self.section.ends))})+"
        self.prompts = [_Prompt(asked, self._method()) for asked in shard.asked]

    def _method(self) -> Method:
        section = self.section
        if section.method == "beam":
            return Beam(section.width, section.max_new_tokens)
        return Tree(section.width, section.exploration, section.max_new_tokens)

    def all(self) -> pa.Table:
        while under_way := [one for one in self.prompts if one.found is None and one.tokens < self.section.tokens]:
            self._advance(under_way)
        return pa.Table.from_pylist([self._row(one) for one in self.prompts], schema=FOUND)

    def _advance(self, prompts: Sequence[_Prompt]) -> None:
        """One simulation, or one step of each beginning, for every prompt."""
        asks = [(one, path) for one in prompts for path in one.method.asks()]
        sampled = self._sampled(asks)
        self._check(asks, sampled)
        for (one, path), some, scores in zip(asks, sampled, self._scores(asks, sampled), strict=True):
            self._note(one, path, some)
            one.method.take(path, [made.drawn(score) for made, score in zip(some, scores, strict=True)])

    def _sampled(self, asks: Sequence[tuple[_Prompt, Path]]) -> list[list[_Sampled]]:
        """What is sampled behind each beginning. Those with about as much room left are sampled together."""
        rooms = [self.section.max_new_tokens - len(path) for _, path in asks]
        stop = () if asks[0][0].method.whole else tuple(self.section.ends)
        together: dict[int, list[int]] = {}
        for at, room in enumerate(rooms):
            together.setdefault(-(-room // ROOM), []).append(at)
        found: dict[int, list[_Sampled]] = {}
        for places in together.values():
            params = SamplingParams(self.section.temperature, max(rooms[at] for at in places), stop=stop)
            made = self.engine.generate([self._request(*asks[at]) for at in places], params)
            for at, completions in zip(places, made, strict=True):
                found[at] = [self._cut(one, rooms[at], bool(stop)) for one in completions]
        return [found[at] for at in range(len(asks))]

    def _request(self, one: _Prompt, path: Path) -> Request:
        """Seeds follow from the prompt, the beginning, and how often it was gone on from."""
        begun = hashlib.sha256(json.dumps(path).encode()).hexdigest()
        name, first = f"{one.asked.row['prompt_id']}/{begun}", one.drawn[path]
        seeds = (completion_seed(self.shard.seed, name, first + at) for at in range(one.method.width))
        return Request((*one.asked.ids, *path), tuple(seeds))

    def _cut(self, completion: Completion, room: int, by_step: bool) -> _Sampled:
        """A completion, cut to its own room. One that a stop string ended has that in its tokens, but not in its
        text."""
        tokens, cost = completion.tokens[:room], len(completion.tokens)
        ended = completion.finish == "stop" and cost <= room
        if ended and by_step:
            ended = self._decode(tokens) == completion.text
        sizes = [] if by_step else [size for size in tokens_of_steps(tokens, self._decode, self.separator) if size]
        step = sizes[0] if len(sizes) > 1 else len(tokens)
        logprobs = None if completion.logprobs is None else completion.logprobs[:room]
        return _Sampled(tokens, logprobs, step, cost, ended)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), **DECODE)

    def _check(self, asks: Sequence[tuple[_Prompt, Path]], sampled: Sequence[Sequence[_Sampled]]) -> None:
        """Notes the checker's value of every answer that came to its end."""
        ended = [
            (one, (*path, *made.tokens), made)
            for (one, path), some in zip(asks, sampled, strict=True)
            for made in some
            if made.ended
        ]
        rows = [
            {**one.asked.row, "completion": [{"role": "assistant", "content": self._decode(path)}], "tokens": path}
            for one, path, _ in ended
        ]
        given = reward_values(rows, self.shard.functions) if rows else {}
        for at, (_, _, made) in enumerate(ended):
            made.value = combine({name: some[at] for name, some in given.items()}, self.shard.weights)

    def _scores(
        self, asks: Sequence[tuple[_Prompt, Path]], sampled: Sequence[Sequence[_Sampled]]
    ) -> list[list[float | None]]:
        """The score of the first step of each, one that has a token; those of the same tokens are scored once."""
        if self.shard.scorer is None:
            return [[None] * len(some) for some in sampled]
        steps = [list(dict.fromkeys(made.tokens[: made.step] for made in some if made.step)) for some in sampled]
        contexts = [(*one.asked.ids, *path) for one, path in asks]
        scored = self.shard.scorer(contexts, steps)
        by_step = [dict(zip(some, scores, strict=True)) for some, scores in zip(steps, scored, strict=True)]
        return [
            [known.get(made.tokens[: made.step]) for made in some] for known, some in zip(by_step, sampled, strict=True)
        ]

    def _note(self, one: _Prompt, beginning: Path, sampled: Sequence[_Sampled]) -> None:
        one.drawn[beginning] += len(sampled)
        for made in sampled:
            one.tokens += made.cost
            if not made.ended:
                continue
            one.answers += 1
            one.unchecked += made.value is None
            path = (*beginning, *made.tokens)
            if made.value is not None and made.value >= RIGHT:
                one.found = one.found or path
            else:
                one.wrong.append(path)

    def _row(self, one: _Prompt) -> dict[str, Any]:
        found = one.found
        wrong = None if found is None else max(one.wrong, key=lambda path: _shared(found, path), default=None)
        return {
            "place": one.asked.place,
            "sampled": one.tokens,
            "answers": one.answers,
            "unchecked": one.unchecked,
            "found": found,
            "text": None if found is None else self._decode(found),
            "wrong": wrong,
            "wrong_text": None if wrong is None else self._decode(wrong),
            "step_scores": None if found is None else self._of_steps(one.asked.ids, found),
        }

    def _of_steps(self, prompt: Path, tokens: Path) -> list[float | None] | None:
        """The score of each step of an answer."""
        sizes = tokens_of_steps(tokens, self._decode, self.separator)
        if self.shard.scorer is None or not sizes:
            return None
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        steps = [tokens[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        contexts = [(*prompt, *tokens[: end - size]) for end, size in zip(ends, sizes, strict=True)]
        scored = self.shard.scorer(contexts, [[step] if step else [] for step in steps])
        return [some[0] if some else None for some in scored]


def _shared(one: Path, other: Path) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
