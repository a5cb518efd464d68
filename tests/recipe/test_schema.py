"""The schema says of recipes what reading them says, and the pages made from it are up to date."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from posttrain import shipped
from posttrain.cli import app
from posttrain.recipe.load import load
from posttrain.recipe.schema import FILE, MODELINE, schema

ROOT = Path(__file__).parents[2]
CHECK = jsonschema.Draft202012Validator(schema())


def fits(text: str) -> bool:
    return CHECK.is_valid(YAML(typ="safe", pure=True).load(text))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("name", shipped.names("recipes"))
def test_every_shipped_recipe_fits_and_tells_editors_where_the_schema_is(name: str) -> None:
    text = shipped.recipe_path(name).read_text("utf-8")
    assert fits(text)
    assert text.splitlines()[0] == MODELINE
    assert (shipped.folder("recipes") / FILE).is_file()


@pytest.mark.parametrize("name", shipped.names("recipes"))
def test_a_resolved_recipe_fits(name: str) -> None:
    assert fits(load(name, files=False).dump())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("samples: {k: 4}", "sample: {k: 4}"),
        ("samples: {k: 4}", "samples: {kk: 4}"),
        ("samples: {k: 4}", "samples: {k: 0}"),
        ("samples: {k: 4}", "samples: {k: '4'}"),
        ("sft: {learning_rate: 1}", "sft: {learning_rat: 1}"),
        ("sft: {learning_rate: 1}", "sft: {learning_rate: 0}"),
        ("sft: {packing: true}", "sft: {output_dir: x}"),
        ("dpo: {loss_type: sigmoid}", "dpo: {loss_type: sigmoids}"),
        ("dpo: {loss_type: [sigmoid]}", "dpo: {loss_type: 1}"),
        ("dpo: {pairs_from: pairs}", "dpo: {pairs_from: pair}"),
        ("dpo: {pairs_from: [pairs, samples]}", "dpo: {pairs_from: []}"),
        ("dpo: {variants: [{beta: 0.2, seed: 1}]}", "dpo: {variants: [{bet: 0.2}]}"),
        ("filters: [{use: length, max_tokens: 9}]", "filters: [{use: lengths}]"),
        ("filters: [{use: length}]", "filters: [{use: length, most: 9}]"),
        ("reward: [{use: a.py, for: scores}]", "reward: [{weight: 1}]"),
        ("prompts: {train: {rows: ':9'}}", "prompts: {train: {rows: 9}}"),
        ("prompts: {system: null}", "prompts: {systems: null}"),
        ("promote: null", "promote: best"),
    ],
)
def test_what_is_right_fits_and_what_is_wrong_does_not(right: str, wrong: str) -> None:
    assert fits(f"extends: quickstart\n{right}")
    assert not fits(f"extends: quickstart\n{wrong}")


def test_without_extends_the_sections_that_every_recipe_needs_are_asked_for() -> None:
    needed = "model: {path: x}\nprompts: {}\nreward: [{use: x.py}]\nsamples: {}\n"
    assert fits(needed)
    assert not fits(needed.replace("samples: {}", ""))


def test_every_key_of_ours_is_described() -> None:
    def undescribed(node: Any, path: str) -> list[str]:
        found = []
        for key, value in node.get("properties", {}).items():
            if "description" not in value and key != "use":
                found.append(f"{path}.{key}")
        return found

    made = schema()
    missing = undescribed(made, "")
    for name, section in made["$defs"].items():
        missing += undescribed(section, name)
    assert missing == []


def test_the_command_prints_it() -> None:
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == schema()


def test_page_and_shipped_schema_are_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "recipe_page.py"))
    assert (ROOT / "docs" / "recipe.md").read_text("utf-8") == made["page"](), "run `make docs`"
    assert (ROOT / "recipes" / FILE).read_text("utf-8") == made["schema_text"](), "run `make docs`"
