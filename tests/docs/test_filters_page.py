"""docs/filters.md: every filter stands there with its keys, and its example runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from posttrain import filters
from posttrain.filters import FILTERS, FilterContext

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "filters.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_has_its_section_and_every_key_its_line(name: str):
    """After a change: python benchmarks/filter_quality.py"""
    section = re.search(rf"^### {name}\n(.*?)(?=^##|<!-- /filters)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/filters.md knows no filter {name}"
    for key, info in FILTERS[name].model_fields.items():
        assert key == "use" or (f"| `{key}` |" in section[1] and str(info.description) in section[1])


def test_the_example_is_a_filter():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(code.strip().splitlines()) <= 24
    made: dict[str, Any] = {}
    exec(compile(code, "docs/filters.md", "exec", dont_inherit=True), made)
    batch = pa.RecordBatch.from_pylist([{"prompt": "p", "completion": text} for text in ("I SEE", "I see", "12")])
    (part,) = filters.run([batch], [made["Shouting"](max_share=0.8)], FilterContext())
    assert part.kept.column("completion").to_pylist() == ["I see", "12"]
    assert part.dropped.column("reason").to_pylist() == ["capitals"]


def test_the_tables_have_their_places():
    fill = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))["fill"]
    for name in ("filters", "planted", "gsm8k-clean", "gsm8k-solutions"):
        assert f"<!-- {name} -->\nhere\n<!-- /{name} -->" in fill(PAGE, name, "here")
