"""The section of the collapse watch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from posttrain.config.keys import NotInKey
from posttrain.config.section import Count, Section, Share


class Collapse(Section):
    """Diversity of each round's kept answers compared to round 1's; a warning if it falls."""

    sample: Count = Field(default=1000, description="Most rows of each of the two rounds to compare.")
    max_change: Share = Field(
        default=0.3,
        description="Warn if distinct-n falls, or compression ratio, self-BLEU or length change, by more than this "
        "share of round 1's.",
    )
    max_near_duplicates: Share = Field(
        default=0.3, description="Warn if more than this share of the answers are near-duplicates of others."
    )
    max_drift: Share = Field(
        default=0.3, description="Warn if the words' Jensen-Shannon divergence from round 1 exceeds this, in bits."
    )
    stop: Annotated[bool, NotInKey()] = Field(default=False, description="End the run after a round with a warning.")
