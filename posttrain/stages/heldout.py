"""Evaluates a policy on the held-out prompts: reported only, no stage that selects anything reads it."""

from __future__ import annotations

from typing import Any

from posttrain.job import Job
from posttrain.stages.evaluate import score_answers


def run(job: Job) -> dict[str, Any]:
    """As `evaluate`, for heldout.parquet; returns {"heldout": F}."""
    return score_answers(job, "heldout")
