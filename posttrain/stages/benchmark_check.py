"""Reads a benchmark before anything is sampled, so that what is wrong with it shows at once."""

from __future__ import annotations

from typing import Any

from posttrain.job import Job
from posttrain.stages import benchmark


def run(job: Job) -> dict[str, Any]:
    """As the stage `benchmark`, without computing anything. Writes nothing."""
    return benchmark.check(job)
