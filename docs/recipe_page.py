"""Writes docs/recipe.md and recipes/recipe.schema.json: every key with its description, from the recipe's classes.

    python docs/recipe_page.py

A test holds both files against what this makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.config import trl_fields
from posttrain.config.trained import Trained
from posttrain.config.training import TRAINED
from posttrain.recipe.schema import FILE, schema, trl_properties

ROOT = Path(__file__).resolve().parent.parent
SECOND = "`watch.reward_model`"  # the same class as `reward_model`

HEAD = """\
# The recipe

Every key, made by `make docs` from the descriptions that stand in the code; do not edit this page. A recipe is YAML.
`extends: NAME` takes another recipe, a shipped one or a path, and changes some keys: mappings are merged key by key,
anything else is replaced, and null takes an inherited value away. `--set a.b=c` changes one key from the command line;
in a list its number is the key, as in `--set reward.0.weight=2`. A name without a slash is a shipped file, one with a
slash a path from the recipe's folder. Environment variables are read for secrets only (`HF_TOKEN`); no other key of a
recipe comes from one.

Every command that reads a recipe reports a wrong key, type or value with file, line and column; `posttrain check`
checks more. For completion in an editor a recipe begins with
`# yaml-language-server: $schema=recipe.schema.json`, which `posttrain init` puts beside it and
`posttrain schema > recipe.schema.json` writes anew.
"""
TRL = """\
Beside these keys, {config}'s fields under their own names. The names that are written out in the resolved recipe:
{shown}. All that may be set:

{names}.
"""
REFUSED = """\
## Fields of TRL that a recipe may not set

| field | why |
| --- | --- |
"""


def page() -> str:
    """The text of docs/recipe.md."""
    made = schema()
    parts = [HEAD, "## At the top\n", _table(made["properties"], made)]
    for name, section in _sections(made["properties"], made, ""):
        kind = TRAINED.get(name.strip("`"))
        parts.append(f"## {name}\n\n{_text(section.get('description', ''))}\n")
        if name == SECOND:
            parts.append("The keys of [`reward_model`](#reward_model).\n")
            continue
        trl = trl_properties(kind) if kind else {}
        parts.append(_table({key: value for key, value in section["properties"].items() if key not in trl}, made))
        if kind:
            parts.append(_trl(kind))
    parts.append(REFUSED + "\n".join(_refused()) + "\n")
    return "\n".join(parts)


def _sections(
    properties: Mapping[str, Any], whole: Mapping[str, Any], above: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The sections below, each under its name in the recipe; keys beside each other that hold the same, together."""
    keys: dict[str, list[str]] = {}
    for key, value in properties.items():
        for kind in _references(value):
            keys.setdefault(kind, []).append(f"{above}{key}")
    for kind, names in keys.items():
        section = whole["$defs"][kind]
        told = next((one for one in ("use", "kind") if "const" in section["properties"].get(one, {})), None)
        use = f" `{told}: {section['properties'][told]['const']}`" if told else ""
        yield ", ".join(f"`{name}`" for name in names) + use, section
        if f"`{names[0]}`" != SECOND:
            yield from _sections(section["properties"], whole, f"{names[0]}.")


def _references(value: Mapping[str, Any]) -> list[str]:
    """The names of the sections that a value may be."""
    if "$ref" in value:
        return [value["$ref"].rpartition("/")[2]]
    inner = [*value.get("anyOf", []), *value.get("oneOf", []), *([value["items"]] if "items" in value else [])]
    return [name for each in inner for name in _references(each)]


def _table(properties: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    rows = ["| key | value | default | what it is |", "| --- | --- | --- | --- |"]
    for key, value in properties.items():
        default = f"`{json.dumps(value['default'], ensure_ascii=False)}`" if "default" in value else ""
        rows.append(f"| `{key}` | {_kind(value)} | {_cell(default)} | {_cell(value.get('description', ''))} |")
    return "\n".join(rows) + "\n"


def _kind(value: Mapping[str, Any]) -> str:
    """What may stand there, in words."""
    if "$ref" in value:
        return "section"
    for many in ("anyOf", "oneOf"):
        if many in value:
            words = dict.fromkeys(_kind(each) for each in value[many] if each.get("type") != "null")
            return " or ".join(words)
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"] if each is not None)
    if value.get("type") == "array":
        return f"list of {_kind(value['items'])}" if value.get("items") else "list"
    kinds = value.get("type", "any")
    word = " or ".join(kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null")
    return {"object": "mapping", "string": "text", "array": "list"}.get(word, word) + _range(value)


def _range(value: Mapping[str, Any]) -> str:
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {_number(value[name])}" for name, sign in bounds.items() if name in value)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _trl(kind: type[Trained]) -> str:
    names = ", ".join(f"`{name}`" for name in trl_properties(kind))
    shown = ", ".join(f"`{name}`" for name in (*trl_fields.SHOWN, *kind.shown))
    return TRL.format(config=f"TRL's {kind.trl_config}", names=names, shown=shown)


def _refused() -> Iterator[str]:
    for name, why in trl_fields.REFUSED.items():
        yield f"| `{name}` | {_cell(why)} |"
    for trainer, kind in TRAINED.items():
        for name, why in kind.refused.items():
            yield f"| `{name}` in `{trainer}` | {_cell(why)} |"


def _text(text: str) -> str:
    """A docstring as one paragraph a paragraph."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def schema_text() -> str:
    """The text of the shipped schema: what `posttrain schema` prints."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "recipe.md").write_text(page(), "utf-8")
    (ROOT / "recipes" / FILE).write_text(schema_text(), "utf-8")
