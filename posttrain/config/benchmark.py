"""The section of a benchmark: a task of lm-evaluation-harness."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from posttrain.config.keys import KeyedAs, KeyedByName, KeyedUnlessDefault
from posttrain.config.section import Count, Section


class Benchmark(Section):
    """A benchmark: a task of lm-evaluation-harness by its name, or a task file."""

    task: Annotated[str, KeyedByName()] = Field(min_length=1)
    """A name of lm-evaluation-harness, such as `gsm8k`, or a task file (a path with a slash)."""
    file: Annotated[str | dict[str, str] | None, KeyedAs("given")] = None
    """Its questions from a file (JSON, JSONL, CSV or Parquet) instead of the Hub; a mapping names a file for each
    split."""
    limit: Count | None = None
    """Only its first questions; null: all."""
    fewshot: Annotated[int | None, KeyedUnlessDefault()] = Field(default=None, ge=0, le=1000)
    """Examples before each question; null: what the task says."""
    chat: bool | None = None
    """Whether a question is put by the model's chat template; null: where the answer is generated, and the model has a
    template."""

    @property
    def name(self) -> str:
        """As figures call it."""
        last = self.task.rstrip("/").rpartition("/")[2]
        return last.removesuffix(".yaml").removesuffix(".yml")


def _by_name(entry: Any) -> Any:
    return {"task": entry} if isinstance(entry, str) else entry


NamedBenchmark = Annotated[Benchmark, BeforeValidator(_by_name)]
