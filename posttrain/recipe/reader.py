"""Reads a recipe's file, and a `--set`, into a tree. Knows nothing of which keys there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode

from posttrain.config.tree import Node, Place, merge
from posttrain.recipe.yaml_tree import MOST_DEPTH, Builder, parse
from posttrain.storage.regular_files import NotRegularError, TooLargeError, read_text


def read(path: Path, shown_as: str | None = None) -> Node:
    """The tree of one file. Raises RecipeError at the line and column that is wrong."""
    place = Place(shown_as or str(path), path.resolve().parent)
    try:
        text = read_text(path)
    except NotRegularError as error:
        raise place.error(error.message, error.hint, rule="recipe-not-regular") from None
    except TooLargeError as error:
        raise place.error(error.message, error.hint, rule="recipe-file-size") from None
    except UnicodeDecodeError as error:
        raise place.error(f"not UTF-8 text (byte {error.start})", rule="recipe-not-utf8") from None
    except OSError as error:
        raise place.error(f"cannot be read: {error.strerror}", rule="recipe-unreadable") from None
    tree = parse(text, place)
    if tree is None:
        raise place.error("the recipe is empty", rule="recipe-empty")
    if not isinstance(tree.value, dict):
        raise tree.place.error("a recipe is a mapping of keys to values", rule="recipe-not-a-mapping")
    return tree


def override(text: str, tree: Node, folder: Path) -> Node:
    """The tree that a `--set a.b=c` alone would be, for merging on top of `tree` (which decides what is a list).

    Raises RecipeError that names `--set a.b`.
    """
    name, equals, value = text.partition("=")
    place = Place(f"--set {name.strip()}", folder, has_lines=False)
    if not equals or not name.strip():
        raise Place(f"--set {text}", folder).error("no value", "write --set key.below=value", rule="recipe-set")
    if not value.strip():
        raise place.error("no value", f"write {name.strip()}=null to remove it", rule="recipe-set")
    node = _set_value(value.strip(), place)
    keys = name.strip().split(".")
    if len(keys) > MOST_DEPTH:
        raise place.error(f"more than {MOST_DEPTH} nested keys", rule="recipe-nesting")
    if any(not key for key in keys):
        raise place.error("a key is empty", rule="recipe-set")
    return _wrap(keys, node, tree, place, ())


def _set_value(text: str, place: Place) -> Node:
    """Brackets and quotes are YAML; all else is one plain scalar, so that ` #` or `: ` in a text stay in it."""
    if text[0] in "[{\"'":
        return parse(text, place) or Node(None, place)
    yaml = YAML(typ="safe", pure=True)
    tag = yaml.resolver.resolve(ScalarNode, text, (True, False))
    return Builder(yaml, place).build(ScalarNode(tag, text))


def _wrap(keys: list[str], leaf: Node, below: Node | None, place: Place, done: tuple[str, ...]) -> Node:
    if not keys:
        return replace(leaf, key_place=place)
    key, rest = keys[0], keys[1:]
    if below is not None and isinstance(below.value, list):
        if not key.isdecimal() or len(key) > 9 or int(key) >= len(below.value):
            name = ".".join(done)
            message = f"'{name}' is a list of {len(below.value)}: {key!r} is not one of its numbers from 0"
            raise place.error(message, rule="recipe-set")
        items = list(below.value)
        old = items[int(key)]
        items[int(key)] = merge(old, _wrap(rest, leaf, old, place, (*done, key)), {})
        return Node(items, place, key_place=place)
    if below is not None and below.value is not None and not isinstance(below.value, dict):
        message = f"'{'.'.join(done)}' is {below.value!r}, which has no keys below it"
        raise place.error(message, rule="recipe-set")
    child = below.child(key) if below is not None else None
    return Node({key: _wrap(rest, leaf, child, place, (*done, key))}, place, key_place=place)
