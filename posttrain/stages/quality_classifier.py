"""Fits a quality classifier, between rounds, to the rows kept and dropped by judges or people so far (Llama 3, 4.2.3).

It is used only if it separates the two on prompts that it was not fitted to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from posttrain import shipped
from posttrain.config import QualityClassifier
from posttrain.errors import DataError
from posttrain.filters import quality_model
from posttrain.filters.quality_model import as_text, embedder
from posttrain.filters.rows import Rows, message_text
from posttrain.job import Job
from posttrain.seeds import derive_seed


class Labelled(NamedTuple):
    """A row with a label. `prompt`: the same for all rows of one prompt."""

    prompt: str
    text: str
    good: bool


def run(job: Job) -> dict[str, Any]:
    """Inputs: filters_001, … (of earlier rounds), policy (if its hidden states are the features). Config: classifier.
    Writes classifier.json and, if it was fitted, weights.safetensors.

    Raises:
        DataError: the file of labels cannot be read.
    """
    section = job.section("classifier", QualityClassifier)
    rows = [row for role in job.numbered("filters") for row in judged(job.inputs[role], section)]
    if section.labels:
        rows += labelled(shipped.locate("data", section.labels))
    heldout = [derive_seed(job.seed, "heldout", row.prompt) / 2**31 < section.heldout for row in rows]
    train = [row for row, out in zip(rows, heldout, strict=True) if not out]
    test = [row for row, out in zip(rows, heldout, strict=True) if out]
    counts = {"rows": len(rows), "good": sum(row.good for row in rows)}
    off = {**counts, "auc": {"value": None, "ci95": None, "n": len(test)}, "on": False}
    least = min(counts["good"], len(rows) - counts["good"])
    if least < section.min_rows or len({row.good for row in train}) < 2 or len({row.good for row in test}) < 2:
        (job.out / quality_model.ABOUT).write_text(json.dumps({"on": False}), encoding="utf-8")
        return {**off, "why": f"{least} rows of the rarer kind: too few to fit and measure a classifier"}
    embed = embedder(job.inputs.get("policy"))
    fitted = quality_model.fit([row.text for row in train], [row.good for row in train], embed)
    chances = fitted.probabilities([row.text for row in test], embed)
    figure = quality_model.auc(chances, [row.good for row in test], [row.prompt for row in test], job.seed)
    low = figure["ci95"][0]
    on = low > section.min_auc
    fitted.about.update(on=on, features=section.features)
    fitted.save(job.out)
    why = {} if on else {"why": f"the AUC's interval begins at {low:.3f}, not above {section.min_auc}"}
    return {**off, "auc": figure, "on": on, **why}


def judged(folder: Path, section: QualityClassifier) -> Iterator[Labelled]:
    """A round's labelled rows: good if they passed every filter, bad if one of `judged_by` dropped them."""
    for name, good in (("kept", True), ("dropped", False)):
        for batch in pq.ParquetFile(folder / f"{name}.parquet").iter_batches(4096):
            rows = Rows(batch)
            by = [None] * len(rows) if good else rows.column("filter")
            reasons = [""] * len(rows) if good else rows.column("reason")
            for prompt, text, answer, who, reason in zip(
                rows.prompt_keys, rows.prompts, rows.answers, by, reasons, strict=True
            ):
                if good or (who in section.judged_by and reason != "no score"):
                    yield Labelled(prompt, as_text(text, answer), good)


def labelled(path: Path) -> list[Labelled]:
    """The rows labelled by people. Raises DataError with the line that is wrong."""
    found = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", file=str(path)) from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            parts = row["prompt"], row["completion"]
            prompt, answer = (part if isinstance(part, str) else message_text(part) for part in parts)
            if not isinstance(row["good"], bool):
                raise ValueError("`good` is neither true nor false")
        except (ValueError, KeyError, TypeError) as error:
            hint = '{"prompt": "…", "completion": "…", "good": true}'
            raise DataError(f"no verdict: {error}", file=str(path), line=number, hint=hint) from error
        found.append(Labelled(prompt, as_text(prompt, answer), row["good"]))
    return found
