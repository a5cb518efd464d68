"""docs/stages.md: every stage has its section, and the columns and files it names are those that are written."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from support.stages_page import PAGE, ROOT, SECTIONS, columns_on_page

from posttrain import filters
from posttrain.data.tables import ANSWERS, PAIRS, SCORED_ANSWERS, STEP_LABELS, STEP_SCORES
from posttrain.rewards import prompt_stats
from posttrain.stages import STAGES, annotate, prompts, watch

ANNOTATED = prompt_stats.schema(SCORED_ANSWERS.append(pa.field("score", pa.float64())), prompt_stats.COLUMNS.names)
SCORED = ANNOTATED.append(STEP_SCORES.field("step_scores"))
WRITTEN = {
    **{f"prompts/{name}.parquet": prompts.SCHEMA for name in ("train", "dev", "heldout", "against")},
    "prompts/real.parquet": prompts.REAL,
    "preferences/pairs.parquet": PAIRS,
    "search/pairs.parquet": PAIRS,
    "correction/pairs.parquet": PAIRS,
    "pairs/pairs.parquet": PAIRS,
    "difficulty/taken.parquet": None,  # built by hand: a run of that stage in tests/stages/test_difficulty.py
    "answers/answers.parquet": ANSWERS,
    "evaluate/dev.parquet": SCORED_ANSWERS,
    "heldout/heldout.parquet": SCORED_ANSWERS,
    "annotate/annotations.parquet": annotate.SCHEMA,
    "step_labels/step_labels.parquet": STEP_LABELS,
    "step_scores/step_scores.parquet": STEP_SCORES,
    "scores/scored.parquet": SCORED,
    "search/scored.parquet": SCORED,
    "correction/scored.parquet": SCORED,
    "filters/kept.parquet": SCORED,
    "filters/dropped.parquet": filters.dropped_schema(SCORED),
    "watch/compared.parquet": watch.COMPARED,
}


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_has_its_section_with_keys_inputs_files_figures_and_the_paper_s_section(name: str) -> None:
    section = SECTIONS[name]
    for word in ("Keys", "Reads", "Writes", "Figures", "Paper"):
        assert f"\n- {word}: " in section, word
    for file in (file for file in columns_on_page() if file.startswith(f"{name}/")):
        assert f"`{Path(file).name}`" in section, file


def test_no_section_is_of_a_stage_that_is_not_there() -> None:
    assert set(SECTIONS) - {"Tables"} == set(STAGES)


def test_the_columns_are_those_that_are_written() -> None:
    assert set(columns_on_page()) == set(WRITTEN)
    for file, schema in WRITTEN.items():
        assert schema is None or columns_on_page()[file] == schema.names, file


def test_every_column_but_the_plain_ones_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", PAGE.partition("| column | what it holds |")[2]))
    for name in (*PAIRS.names, *SCORED_ANSWERS.names, *prompts.SCHEMA.names):
        assert name in explained | {"sample_index", "tag", "split"}, name


def test_links_lead_to_sections_of_the_recipe_s_page() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text("utf-8")
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    for anchor in re.findall(r"recipe\.md#([\w-]+)", PAGE):
        assert anchor in anchors, anchor
