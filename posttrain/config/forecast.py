"""The section of the forecast."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from posttrain.config.keys import NotInKey
from posttrain.config.section import Count, Section


class Forecast(Section):
    """What the accuracy of later rounds will be, from the first ones."""

    rounds: int = Field(default=2, ge=2, le=100)
    """Rounds that it is made from, besides the starting model."""
    prompts: Count = 500
    """Most held-out prompts for which the likelihood of the right answers is measured."""
    runs: Annotated[list[str], NotInKey()] = Field(default=[])
    """Folders of runs that cost less, for `posttrain check`: of fewer training prompts, and beside one of those of
    smaller models. Held-out prompts, rewards and sampling as in this recipe."""
