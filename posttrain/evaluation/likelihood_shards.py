"""Log-likelihoods of many continuations under one policy, shard by shard, in several processes."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.engines.protocol import Ids
from posttrain.storage.part import Part
from posttrain.storage.pieces import by_work
from posttrain.storage.shards import processes, run_shards
from posttrain.system import device

_FEWEST, _LEAST = 8, 2048  # shards on a CPU, of so many tokens at least: each core has some, on any machine


def shards_on_cpu(tokens: float, shard_tokens: int) -> int:
    """About how many shards texts of so many tokens in all are."""
    return max(1, math.ceil(tokens / _of_a_shard(tokens, shard_tokens)))


def _of_a_shard(tokens: float, shard_tokens: int) -> float:
    return min(shard_tokens, max(_LEAST, tokens / _FEWEST))


@dataclass(frozen=True)
class Work:
    """Where and how shards of a policy are made: `scratch` survives a kill. `engine`: `use` and `dtype` of the recipe.
    `progress` gets the number of rows of each shard that is done. `part`: the shards that are made here, None: all."""

    policy: Path
    scratch: Path
    workers: int
    engine: Mapping[str, str]
    shard_tokens: int
    progress: Callable[[int], None] = lambda rows: None
    part: Part | None = None

    def parts(self, sizes: Sequence[int]) -> list[slice]:
        """Shards of texts of so many tokens each that are read: of `shard_tokens` at most, on a CPU of less if they
        would be few."""
        return by_work(sizes, self.shard_tokens if device() == "cuda" else _of_a_shard(sum(sizes), self.shard_tokens))

    def parts_sampled(self, sizes: Sequence[int]) -> list[slice]:
        """Shards of answers with their prompts: one a process if they fit, as a step costs little more with more
        rows."""
        return by_work(sizes, min(self.shard_tokens, math.ceil(sum(sizes) / processes(self.workers)) + max(sizes)))

    def rows(self, make: Callable[[Any], pa.Table], shards: Sequence[Any], plan: Any) -> list[dict[str, Any]]:
        """The rows that `make` makes of the shards, by their column `place`. Shards that an earlier process has
        finished for the same `plan` (JSON, but for what `str` makes of it) are not made again."""
        named = json.dumps([len(shards), plan], default=str)
        folder = self.scratch / "shards" / hashlib.sha256(named.encode()).hexdigest()[:16]
        paths = run_shards(make, shards, folder, processes(self.workers), self.progress, part=self.part)
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        return sorted(rows, key=lambda row: row["place"])


@dataclass(frozen=True)
class Continuations:
    """A context with those of its continuations that are asked for; `places`: of each among the pairs; `parts`: the
    tokens of each of its parts, which are summed apart."""

    context: Ids
    continuations: tuple[Ids, ...]
    places: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Shard:
    policy: str
    dtype: str
    temperature: float
    texts: tuple[Continuations, ...]


def log_likelihoods(pairs: Sequence[tuple[Ids, Ids]], work: Work) -> list[tuple[float, bool]]:
    """Of each pair of a context and a continuation, as token ids: the sum of the continuation's natural log-probs, and
    whether each of its tokens is the likeliest one, so that greedy decoding would give it. A context is computed
    once."""
    rows = _rows(pairs, [(len(continuation),) for _, continuation in pairs], work, 1.0)
    return [(row["parts"][0], row["greedy"]) for row in rows]


def of_parts(
    pairs: Sequence[tuple[Ids, Ids]], parts: Sequence[Sequence[int]], work: Work, temperature: float = 1.0
) -> list[list[float]]:
    """As `log_likelihoods`, for each part of a continuation, such as a step of an answer, at this temperature. `parts`:
    of each pair the tokens of its parts, one behind the other; tokens after the last are in none."""
    return [row["parts"] for row in _rows(pairs, [tuple(sizes) for sizes in parts], work, temperature)]


def tokens_read(pairs: Sequence[tuple[Ids, Ids]]) -> int:
    """The tokens that `log_likelihoods` computes for these pairs: each context once, and all continuations."""
    return sum(len(one.context) + sum(map(len, one.continuations)) for one in by_context(pairs, [()] * len(pairs)))


def _rows(
    pairs: Sequence[tuple[Ids, Ids]], parts: Sequence[tuple[int, ...]], work: Work, temperature: float
) -> list[dict[str, Any]]:
    texts = sorted(by_context(pairs, parts), key=lambda one: (len(one.context), one.context))
    sizes = [len(one.context) + sum(map(len, one.continuations)) for one in texts]
    how = str(work.policy), work.engine["dtype"], temperature
    shards = [_Shard(*how, tuple(texts[part])) for part in work.parts(sizes)]
    plan = [temperature, *([*map(list, pair), list(of)] for pair, of in zip(pairs, parts, strict=True))]
    return work.rows(_likelihoods, shards, plan)


def by_context(pairs: Sequence[tuple[Ids, Ids]], parts: Sequence[tuple[int, ...]]) -> list[Continuations]:
    """The continuations of each context, with their places and parts."""
    found: dict[Ids, list[int]] = {}
    for place, (context, _) in enumerate(pairs):
        found.setdefault(context, []).append(place)
    return [
        Continuations(context, tuple(pairs[at][1] for at in places), tuple(places), tuple(parts[at] for at in places))
        for context, places in found.items()
    ]


def _likelihoods(shard: _Shard) -> pa.Table:
    model = _scoring(shard.policy, shard.dtype, shard.temperature)
    found = model.of([text.context for text in shard.texts], [text.continuations for text in shard.texts])
    rows = []
    for text, some in zip(shard.texts, found, strict=True):
        for place, parts, one in zip(text.places, text.parts, some, strict=True):
            sums = [float(part.sum()) for part in one.tokens[: sum(parts)].split([*parts])]
            rows.append({"place": place, "parts": sums, "greedy": one.greedy})
    schema = pa.schema([("place", pa.int64()), ("parts", pa.list_(pa.float64())), ("greedy", pa.bool_())])
    return pa.Table.from_pylist(rows, schema=schema)


@functools.lru_cache(maxsize=1)
def _scoring(policy: str, dtype: str, temperature: float) -> Any:
    from posttrain.engines.likelihood import Likelihoods
    from posttrain.engines.load import load

    return Likelihoods(load(policy, dtype, device()), temperature)
