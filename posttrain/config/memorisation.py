"""The section of memorisation."""

from __future__ import annotations

from pydantic import Field

from posttrain.config.section import Count, Section


class Memorisation(Section):
    """How much of its training rows each round's policy has by heart."""

    n: int = Field(default=50, ge=1, le=10_000)
    """Tokens that are to be continued word for word."""
    rows: Count = 1000
    """Most rows that are asked for, of those trained on and of the others."""
