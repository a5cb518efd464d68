"""The section of the collapse watch."""

from __future__ import annotations

from typing import Annotated

from posttrain.config.keys import NotInKey
from posttrain.config.section import Count, Section, Share


class Collapse(Section):
    """Diversity of each round's kept answers compared to round 1's; a warning if it falls."""

    sample: Count = 1000
    """Most rows of each of the two rounds to compare."""
    max_change: Share = 0.3
    """Warn if distinct-n falls, or compression ratio, self-BLEU or length change, by more than this share of round
    1's."""
    max_near_duplicates: Share = 0.3
    """Warn if more than this share of the answers are near-duplicates of others."""
    max_drift: Share = 0.3
    """Warn if the words' Jensen-Shannon divergence from round 1 exceeds this, in bits."""
    stop: Annotated[bool, NotInKey()] = False
    """End the run after a round with a warning."""
