"""Reads the questions of label variants before anything is sampled, so that what is wrong with them shows at once."""

from __future__ import annotations

from typing import Any

from posttrain.job import Job
from posttrain.stages import label_variants


def run(job: Job) -> dict[str, Any]:
    """As the stage `label_variants`, without computing anything. Writes nothing."""
    return label_variants.check(job)
