"""Quality filters between sampling and training: Arrow batches in, kept rows and dropped rows with a reason out.

    run = filters.run(batches, filters.parse([{"use": "length", "max_tokens": 200}]), FilterContext())
    for kept, dropped in run:
        ...
    run.counts

No torch, no files. A new filter is one class (its keys, and a `start` that returns a function from rows to verdicts)
and a line in FILTERS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from posttrain.config.problems import in_our_words
from posttrain.errors import RecipeError, did_you_mean
from posttrain.filters.base import AcrossRounds, Filter, FilterContext, Mask, Verdict
from posttrain.filters.best_of_k import BestOfK
from posttrain.filters.chain import Count, FilterResult, Run, dropped_schema
from posttrain.filters.classifier import Classifier
from posttrain.filters.contamination import Overlap
from posttrain.filters.duplicates import ExactDuplicates
from posttrain.filters.emphasis import Emphasis
from posttrain.filters.format import Format, Length
from posttrain.filters.judge import Judged, Quality
from posttrain.filters.language import Language
from posttrain.filters.learned_quality import LearnedQuality
from posttrain.filters.leftovers import Residue
from posttrain.filters.near_duplicates import NearDuplicates
from posttrain.filters.pii import PersonalData
from posttrain.filters.refusals import Refusals
from posttrain.filters.repetition import Loop, Repetition
from posttrain.filters.rows import message_text
from posttrain.filters.semantic_duplicates import SemanticDuplicates
from posttrain.filters.steps import Steps
from posttrain.filters.truncation import Truncated
from posttrain.filters.unsafe import UnsafeWords
from posttrain.storage.pieces import Pieces

__all__ = [
    "FILTERS",
    "AcrossRounds",
    "Count",
    "Filter",
    "FilterContext",
    "FilterResult",
    "Mask",
    "Run",
    "Verdict",
    "dropped_schema",
    "message_text",
    "parse",
    "run",
]

FILTERS: dict[str, type[Filter]] = {
    "format": Format,
    "length": Length,
    "repetition": Repetition,
    "loop": Loop,
    "truncated": Truncated,
    "residue": Residue,
    "emphasis": Emphasis,
    "language": Language,
    "unsafe-words": UnsafeWords,
    "pii": PersonalData,
    "refusals": Refusals,
    "exact-duplicates": ExactDuplicates,
    "near-duplicates": NearDuplicates,
    "semantic-duplicates": SemanticDuplicates,
    "overlap": Overlap,
    "best-of-k": BestOfK,
    "quality": Quality,
    "judge": Judged,
    "classifier": Classifier,
    "learned-quality": LearnedQuality,
    "steps": Steps,
}


def run(
    batches: Iterable[pa.RecordBatch],
    filters: Sequence[Filter],
    context: FilterContext,
    memory: Pieces | None = None,
) -> Run:
    """Filters rows in a stream, each filter on the rows that the ones before it kept.

    Rows have `prompt` and `completion` (or a pair's `chosen`, or whole `messages`: see `rows.Rows`), as text or chat
    messages, those of one prompt together; `prompt_id`, `sample_index`, `n_tokens`, `finish` and `score` are read
    where they are.

    Raises:
        InputError: here, when the context lacks what a filter needs, or `batches` is an iterator, which can be gone
            through but once, and a filter must see all rows first; while iterating, when the rows lack it.
    """
    return Run(batches, filters, context, memory)


def parse(entries: Sequence[Mapping[str, Any]]) -> list[Filter]:
    """The filters of a recipe's `filters:` list. Raises RecipeError that names the entry and what was meant."""
    return [_parse_one(f"filters[{index}]", entry) for index, entry in enumerate(entries)]


def _parse_one(where: str, entry: Mapping[str, Any]) -> Filter:
    name = entry.get("use") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or name not in FILTERS:
        meant = did_you_mean(name, FILTERS) if isinstance(name, str) else ""
        problem = f"unknown filter {name!r}{meant}" if name is not None else "no `use`"
        hint = f"filters are {', '.join(FILTERS)}"
        raise RecipeError(f"{where}: {problem}", hint=hint, rule="recipe-unknown-name")
    try:
        return FILTERS[name].model_validate(dict(entry))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        found = in_our_words(first, ".".join(map(str, first["loc"])))
        raise RecipeError(f"{where}: {name}: {found.message}", hint=found.hint, rule=found.rule) from None
