"""docs/data.md: each example, rows and the recipe's lines, is read as the page says."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from posttrain.config import PromptSet
from posttrain.data.load import read_labelled, read_preferences, read_prompts

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
EXAMPLE = re.compile(r"```(jsonl|csv)\n(.*?)```\n```yaml\n(.*?)```\n```json\n(.*?)```", re.DOTALL)
EXAMPLES = EXAMPLE.findall(PAGE)
RECIPES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def sets(recipe: str) -> list[dict[str, Any]]:
    found = YAML(typ="safe").load(recipe)
    (section,) = found.values()
    given = section["train"] if "prompts" in found else section["given"]
    return given if isinstance(given, list) else [given]


def write(path: Path, kind: str, text: str) -> Path:
    """The rows of an example under the ending that its recipe names."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in text.splitlines()]), path)
    else:
        assert path.suffix == f".{kind}"
        path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(("kind", "rows", "recipe", "expected"), EXAMPLES)
def test_an_example_is_read_as_the_page_says(tmp_path: Path, kind: str, rows: str, recipe: str, expected: str) -> None:
    (asked,) = sets(recipe)
    path = write(tmp_path / Path(asked["path"]).name, kind, rows)
    given = PromptSet.model_validate({**asked, "path": str(path)})
    if "prompts:" in recipe:
        read = [{"prompt": list(one.messages), "columns": dict(one.columns)} for one in read_prompts(given)]
    elif "kto:" in recipe:
        read = [
            {"prompt": list(one.prompt.messages), "completion": list(one.completion), "label": one.label}
            for one in read_labelled(given, where="kto.given")
        ]
    else:
        pairs = [
            {"prompt": list(one.prompt.messages), "chosen": list(one.chosen), "rejected": list(one.rejected)}
            | ({"edited": list(one.edited)} if one.edited else {})
            | ({"level": one.level} if one.level else {})
            for one in read_preferences(given)
        ]
        read = pairs
    assert read == [json.loads(line) for line in expected.splitlines()]


def test_the_page_has_its_examples() -> None:
    assert len(EXAMPLES) == 15
    assert len(re.findall(r"```(?:jsonl|csv)\n", PAGE)) == len(EXAMPLES)  # none is passed over
    assert len(list(csv.reader(io.StringIO(next(rows for kind, rows, *_ in EXAMPLES if kind == "csv"))))) == 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_lines_are_a_recipes(recipe: str) -> None:
    assert all(PromptSet.model_validate(one) for one in sets(recipe))
