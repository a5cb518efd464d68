"""A policy as a model of lm-evaluation-harness: its requests go to our engines, shard by shard, in several processes.

Tokens are made as lm-evaluation-harness's own `hf` model makes them, so that figures can be compared.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from posttrain.engines.protocol import Ids, Request, SamplingParams, completion_seed, context_length
from posttrain.evaluation.likelihood_shards import Work, log_likelihoods, tokens_read
from posttrain.system import device

_LONGEST_ANSWER = 256  # tokens, where a task does not say: as lm-evaluation-harness has it
_STAND_IN = "The answer is 1."  # a task may score an empty answer without what it scores others with


class DoesNotFitError(ValueError):
    """A request is longer than the model's context."""


@dataclass(frozen=True)
class _AnswerShard:
    policy: str
    engine: str
    dtype: str
    params: SamplingParams
    requests: tuple[Request, ...]
    places: tuple[int, ...]


class EngineModel(TemplateLM):
    """See `lm_eval.api.model.LM`. `seed`: of the answers to tasks that are sampled. `dry`: nothing is computed, and
    each request gets an answer that stands in: what is wrong, in its scoring too, shows all the same. `asked`:
    requests so far; `texts`: log-likelihoods among them; `read`: tokens of their texts and of the prompts of answers;
    `answers`: how many answers there are by the most new tokens that they may have.

    Raises:
        DoesNotFitError: a request is longer than the model's context. lm-evaluation-harness cuts such ones at their
            beginning, which is another question.
    """

    backend = "causal"

    def __init__(self, work: Work, seed: int, dry: bool = False) -> None:
        from transformers import AutoConfig, AutoTokenizer

        super().__init__()
        self.work, self.seed, self.dry = work, seed, dry
        self.asked = self.texts = self.read = 0
        self.answers: dict[int, int] = {}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(work.policy)
        self.max_length = context_length(AutoConfig.from_pretrained(work.policy))

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if first is None else first

    @property
    def tokenizer_name(self) -> str:
        return self.work.policy.name

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
        pairs = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        for context, continuation in pairs:
            self._fits(len(context), len(continuation))
        self.asked += len(pairs)
        self.texts += len(pairs)
        self.read += tokens_read(pairs)
        return [(0.0, False)] * len(pairs) if self.dry else log_likelihoods(pairs, self.work)

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
        self.asked += len(requests)
        if self.dry:
            return [_STAND_IN] * len(requests)
        return [row["text"] for row in self.work.rows(_answers, shards, [list(one.args) for one in requests])]

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
            self.read += len(ids)
        self.answers[params.max_new_tokens] = self.answers.get(params.max_new_tokens, 0) + len(places)
        order = sorted(places, key=lambda at: (len(encoded[at]), at))
        engine = self.work.engine
        return [
            _AnswerShard(
                str(self.work.policy),
                engine["use"],
                engine["dtype"],
                params,
                tuple(
                    Request(encoded[at], (completion_seed(self.seed, str(at), 0) if drawn else None,))
                    for at in order[part]
                ),
                tuple(order[part]),
            )
            for part in self.work.parts_sampled([len(encoded[at]) + params.max_new_tokens for at in order])
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


def _options(request: Any) -> dict[str, Any]:
    """How an answer is to be generated."""
    return request.args[1]


def _answers(shard: _AnswerShard) -> pa.Table:
    made = _sampling(shard.policy, shard.engine, shard.dtype).generate(shard.requests, shard.params)
    rows = [{"place": place, "text": some[0].text} for place, some in zip(shard.places, made, strict=True)]
    return pa.Table.from_pylist(rows, schema=pa.schema([("place", pa.int64()), ("text", pa.string())]))


@functools.lru_cache(maxsize=1)
def _sampling(policy: str, use: str, dtype: str) -> Any:
    from posttrain.engines import load_engine

    return load_engine(policy, use, dtype, device())  # pyright: ignore[reportArgumentType] # checked by the recipe
