"""docs/instructions.md: the kinds as the registry has them, and a row that scores as it says."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "instructions.md").read_text("utf-8")


def test_the_table_of_kinds_is_the_registry_s():
    """After a change: make docs"""
    assert runpy.run_path(str(ROOT / "docs" / "instructions_page.py"))["page"]() == PAGE


def test_the_row_of_the_page_is_scored():
    (block,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    row = json.loads(block)
    score = runpy.run_path(str(ROOT / "reward" / "instructions.py"))["share_followed"]
    messages = (
        [[{"role": "user", "content": row["prompt"]}]],
        [[{"role": "assistant", "content": "A tower with a lamp."}]],
    )
    assert score(*messages, [row["instruction_id_list"]], [row["kwargs"]]) == [1.0]
