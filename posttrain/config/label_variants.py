"""The section of label variants: whether answers to multiple-choice questions depend on how these are put."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from posttrain.config.keys import KeyedAs
from posttrain.config.section import Count, Section


class LabelVariants(Section):
    """The same multiple-choice questions with other labels, other orders of the answers, other examples and other words
    around them."""

    path: Annotated[str, KeyedAs("given")]
    """Questions (JSONL or Parquet) with `question`, `choices` (a list of 2 to 8 texts) and `answer` (its place,
    from 0, or its letter)."""
    rows: Count = 200
    """Most questions that are asked."""
    examples: int = Field(default=4, ge=0, le=8)
    """Questions, the first of the file, that stand with their answers before each other one."""
