"""The JSON schema of a recipe's file, for completion in editors: made from the recipe's classes and TRL's fields.

It says which keys there are, their types, ranges, defaults and descriptions. What must fit between keys only reading
the recipe tells (`posttrain check`): a schema is for writing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from posttrain.config import trl_fields
from posttrain.config.trained import Trained
from posttrain.config.training import TRAINED
from posttrain.recipe.recipe import Recipe

FILE = "recipe.schema.json"
MODELINE = f"# yaml-language-server: $schema={FILE}"  # beside the recipe: true of the shipped ones and of copies

_EXTENDS = {"type": "string", "description": "Takes another recipe, by name or path, and changes some of its keys."}


def schema() -> dict[str, Any]:
    """The schema of a recipe's file (JSON Schema, draft 2020-12)."""
    made = Recipe.model_json_schema(by_alias=True)
    sections = made["$defs"]
    del sections["BaseModel"]  # in its place the filters, one by one
    made["properties"]["filters"]["items"] = _filters(sections)
    for kind in TRAINED.values():
        section = sections[kind.__name__]
        _with_trl(section, kind)
        section["properties"] |= {name: _or_one(section["properties"][name]) for name in kind.one_or_more}
    # A mapping is merged with the inherited one, so with `extends` none of its keys need be there; a list is replaced.
    listed = {name for name in sections if {"$ref": f"#/$defs/{name}"} in _items(made)}
    for name, section in sections.items():
        if name not in listed:
            section.pop("required", None)
        section["properties"] = {key: _nullable(value) for key, value in section["properties"].items()}
    required = [key for key in made.pop("required") if key != "name"]
    made["properties"] = {"extends": _EXTENDS} | {key: _nullable(each) for key, each in made["properties"].items()}
    made["anyOf"] = [{"required": ["extends"]}, {"required": required}]
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A recipe of posttrain"}
    return {**about, **_readable(made)}


def trl_properties(kind: type[Trained]) -> dict[str, Any]:
    """TRL's fields that a trained section may hold, each as a schema."""
    return {
        name: _trl_property(kind, name, field)
        for name, field in kind.known_fields().items()
        if trl_fields.refusal(name, kind.refused) is None
    }


def _trl_property(kind: type[Trained], name: str, field: dict[str, Any]) -> dict[str, Any]:
    types = field["types"]
    made: dict[str, Any] = {"type": types if len(types) > 1 else types[0]}
    if "choices" in field and types != ["array"]:
        made["enum"] = [*field["choices"], *([None] if "null" in types else [])]
    if "choices" in field and types == ["array"]:
        made["items"] = {"enum": field["choices"]}
    if {"integer", "number"} & {*types} and "enum" not in made:
        low, high, included = trl_fields.bounds(kind.trainer, name)
        made |= {"minimum" if included else "exclusiveMinimum": low, "maximum": high}
    made |= {"default": field["default"], "description": f"TRL's {kind.trl_config}.{name}."}
    return _or_one(made) if types == ["array"] else made


def _with_trl(section: dict[str, Any], kind: type[Trained]) -> None:
    """TRL's fields beside ours, and nothing else; a variant is a section without variants, with a seed."""
    section["properties"] |= trl_properties(kind)
    section["additionalProperties"] = False
    seed = {
        "type": "integer",
        "minimum": 0,
        "maximum": 2**32 - 1,
        "default": 0,
        "description": "Which draw of all that is random.",
    }
    below = {key: value for key, value in section["properties"].items() if key != "variants"}
    section["properties"]["variants"] |= {
        "items": {"type": "object", "properties": {**below, "seed": seed}, "additionalProperties": False}
    }


def _filters(sections: dict[str, Any]) -> dict[str, Any]:
    """The schema of a filter: one section per kind, discriminated by `use`."""
    from posttrain.filters import FILTERS  # here, since it imports pyarrow

    for kind in FILTERS.values():
        made = kind.model_json_schema(ref_template="#/$defs/{model}")
        sections.update(made.pop("$defs", {}))
        sections[f"Filter{kind.__name__}"] = {**made, "required": ["use"]}
    return {"oneOf": [{"$ref": f"#/$defs/Filter{kind.__name__}"} for kind in FILTERS.values()]}


def _or_one(items: dict[str, Any]) -> dict[str, Any]:
    """A list, or one of its items without brackets."""
    notes = {key: items[key] for key in ("default", "description") if key in items}
    plain = {key: value for key, value in items.items() if key not in notes}
    return {"anyOf": [plain, plain.get("items", {"type": "string"})], **notes}


def _nullable(given: dict[str, Any]) -> dict[str, Any]:
    """The same or null: on top of an inherited value null takes it away."""
    if given.get("type") == "null" or any(each.get("type") == "null" for each in given.get("anyOf", [])):
        return given
    if "null" in given.get("type", ()) or "const" in given:
        return given
    notes = {key: given[key] for key in ("default", "description") if key in given}
    plain = {key: value for key, value in given.items() if key not in notes}
    return {
        "anyOf": [*plain["anyOf"], {"type": "null"}] if set(plain) == {"anyOf"} else [plain, {"type": "null"}],
        **notes,
    }


def _items(node: Any) -> Iterator[dict[str, Any]]:
    """What lists hold, anywhere below."""
    if isinstance(node, dict):
        if isinstance(node.get("items"), dict):
            yield node["items"]
            yield from node["items"].get("oneOf", [])
        for child in node.values():
            yield from _items(child)
    elif isinstance(node, list):
        for child in node:
            yield from _items(child)


def _readable(node: Any, names: bool = False) -> Any:
    """Without the titles that pydantic makes of names, which an editor would show before the descriptions; a
    description's paragraphs each in one line.

    `names`: the keys of this mapping are names that the recipe chose, so a `title` among them is none.
    """
    if isinstance(node, list):
        return [_readable(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {
        key: re.sub(r"(?<!\n)\n(?!\n)", " ", value)
        if key == "description" and not names
        else _readable(value, names=key in ("properties", "$defs") and not names)
        for key, value in node.items()
        if names or key != "title"
    }
