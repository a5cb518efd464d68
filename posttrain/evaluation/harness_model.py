"""A policy as a model of lm-evaluation-harness: its requests go to our engines, shard by shard, in several processes.

Tokens are made as lm-evaluation-harness's own `hf` model makes them, so that figures can be compared.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from posttrain.engines.protocol import Request, SamplingParams, completion_seed, context_length
from posttrain.storage.pieces import by_work
from posttrain.storage.shards import processes, run_shards
from posttrain.system import device

_LONGEST_ANSWER = 256  # tokens, where a task does not say: as lm-evaluation-harness has it

Ids = tuple[int, ...]


class DoesNotFitError(ValueError):
    """A request is longer than the model's context."""


@dataclass(frozen=True)
class _Continuations:
    """A context with those of its continuations that are asked for; `places`: of each among the requests."""

    context: Ids
    continuations: tuple[Ids, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class _LikelihoodShard:
    policy: str
    dtype: str
    texts: tuple[_Continuations, ...]


@dataclass(frozen=True)
class _AnswerShard:
    policy: str
    engine: str
    dtype: str
    params: SamplingParams
    requests: tuple[Request, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """Where and how a model's shards are made: `scratch` survives a kill. `engine`: `use` and `dtype` of the recipe.
    `dry`: nothing is computed, and each request gets an answer that says nothing: what is wrong shows all the same."""

    scratch: Path
    workers: int
    engine: Mapping[str, str]
    shard_tokens: int
    seed: int
    progress: Callable[[int], None] = lambda rows: None
    dry: bool = False


class EngineModel(TemplateLM):
    """See `lm_eval.api.model.LM`.

    Raises:
        DoesNotFitError: a request is longer than the model's context. lm-evaluation-harness cuts such ones at their
            beginning, which is another question.
    """

    backend = "causal"

    def __init__(self, policy: Path, work: Work) -> None:
        from transformers import AutoConfig, AutoTokenizer

        super().__init__()
        self.policy, self.work = policy, work
        self.asked = 0  # requests so far
        self.tokenizer: Any = AutoTokenizer.from_pretrained(policy)
        self.max_length = context_length(AutoConfig.from_pretrained(policy))

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        return self.policy.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; those that begin a text as the tokenizer adds them, unless the text has them."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **given)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        texts = _by_context([(tuple(context), tuple(continuation)) for _, context, continuation in requests])
        for text in texts:
            self._fits(len(text.context), max(map(len, text.continuations)))
        texts.sort(key=lambda one: (len(one.context), one.context))
        sizes = [len(one.context) + sum(map(len, one.continuations)) for one in texts]
        engine = self.work.engine
        shards = [
            _LikelihoodShard(str(self.policy), engine["dtype"], tuple(texts[part]))
            for part in by_work(sizes, self.work.shard_tokens)
        ]
        if self.work.dry:
            return [(0.0, False)] * len(requests)
        rows = self._made(_likelihoods, shards, requests)
        return [(row["total"], row["greedy"]) for row in rows]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows, counts = list[tuple[None, list[int], list[int]]](), list[int]()
        for one in requests:
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(one.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(windows)
            windows += [(None, *make_disjoint_window(window)) for window in cut]
            counts.append(len(windows) - before)
        values = iter(self._loglikelihood_tokens(windows))
        return [sum(next(values)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for at, one in enumerate(requests):
            groups.setdefault(json.dumps(_options(one), sort_keys=True), []).append(at)
        shards = [shard for places in groups.values() for shard in self._answer_shards(requests, places)]
        if self.work.dry:
            return [""] * len(requests)
        return [row["text"] for row in self._made(_answers, shards, [one.args for one in requests])]

    def _answer_shards(self, requests: Sequence[Instance], places: Sequence[int]) -> list[_AnswerShard]:
        """Of requests that ask for the same kind of answer."""
        asked: dict[str, Any] = {**normalize_gen_kwargs(_options(requests[places[0]]), _LONGEST_ANSWER)}
        stop = tuple(one for one in asked["until"] if one)
        drawn = bool(asked.get("do_sample")) and asked.get("temperature", 1.0) > 0
        params = SamplingParams(
            float(asked.get("temperature", 1.0)) if drawn else 0.0,
            int(asked["max_gen_toks"]),
            float(asked.get("top_p", 1.0)) if drawn else 1.0,
            stop,
        )
        encoded = {at: self._context(requests[at].args[0]) for at in places}
        for ids in encoded.values():
            self._fits(len(ids), params.max_new_tokens)
        order = sorted(places, key=lambda at: (len(encoded[at]), at))
        engine = self.work.engine
        return [
            _AnswerShard(
                str(self.policy),
                engine["use"],
                engine["dtype"],
                params,
                tuple(
                    Request(encoded[at], (completion_seed(self.work.seed, str(at), 0) if drawn else None,))
                    for at in order[part]
                ),
                tuple(order[part]),
            )
            for part in by_work([len(encoded[at]) + params.max_new_tokens for at in order], self.work.shard_tokens)
        ]

    def _context(self, text: str) -> Ids:
        first = self.tokenizer.bos_token
        given = {"add_special_tokens": False} if first and text.startswith(first) else {}
        return tuple(self.tokenizer(text, **given)["input_ids"])

    def _fits(self, context: int, more: int) -> None:
        if context + more > self.max_length:
            raise DoesNotFitError(
                f"a question has {context} tokens and its answer up to {more}, and the model's context is "
                f"{self.max_length}"
            )

    def _made(
        self, work: Callable[[Any], pa.Table], shards: Sequence[Any], requests: Iterable[Any]
    ) -> list[dict[str, Any]]:
        """The rows that `work` makes of the shards, in the order of the requests. Shards of the same plan that an
        earlier process has finished are not made again."""
        listed = [list(one) for one in requests]
        self.asked += len(listed)
        planned = json.dumps(listed, default=str)
        folder = self.work.scratch / "shards" / hashlib.sha256(planned.encode()).hexdigest()[:16]
        paths = run_shards(work, shards, folder, processes(self.work.workers), self.work.progress)
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        return sorted(rows, key=lambda row: row["place"])


def _options(request: Any) -> dict[str, Any]:
    """How an answer is to be generated."""
    return request.args[1]


def _by_context(pairs: Sequence[tuple[Ids, Ids]]) -> list[_Continuations]:
    """The continuations of each context, with their places."""
    found: dict[Ids, list[tuple[Ids, int]]] = {}
    for place, (context, continuation) in enumerate(pairs):
        found.setdefault(context, []).append((continuation, place))
    return [
        _Continuations(context, tuple(one for one, _ in some), tuple(place for _, place in some))
        for context, some in found.items()
    ]


def _likelihoods(shard: _LikelihoodShard) -> pa.Table:
    model = _scoring(shard.policy, shard.dtype)
    found = model.of([text.context for text in shard.texts], [text.continuations for text in shard.texts])
    rows = [
        {"place": place, "total": one.total, "greedy": one.greedy}
        for text, some in zip(shard.texts, found, strict=True)
        for place, one in zip(text.places, some, strict=True)
    ]
    schema = pa.schema([("place", pa.int64()), ("total", pa.float64()), ("greedy", pa.bool_())])
    return pa.Table.from_pylist(rows, schema=schema)


def _answers(shard: _AnswerShard) -> pa.Table:
    made = _sampling(shard.policy, shard.engine, shard.dtype).generate(shard.requests, shard.params)
    rows = [{"place": place, "text": some[0].text} for place, some in zip(shard.places, made, strict=True)]
    return pa.Table.from_pylist(rows, schema=pa.schema([("place", pa.int64()), ("text", pa.string())]))


@functools.lru_cache(maxsize=1)
def _scoring(policy: str, dtype: str) -> Any:
    from posttrain.engines.likelihood import Likelihoods
    from posttrain.engines.load import load

    return Likelihoods(load(policy, dtype, device()))


@functools.lru_cache(maxsize=1)
def _sampling(policy: str, use: str, dtype: str) -> Any:
    from posttrain.engines import load_engine

    return load_engine(policy, use, dtype, device())  # pyright: ignore[reportArgumentType] # checked by the recipe
