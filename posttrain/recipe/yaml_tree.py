"""YAML text as a tree, of a bounded size: what aliases expand to is counted before it is made."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from posttrain.config.tree import Node, Place

MOST_DEPTH = 50
MOST_VALUES = 20_000  # keys and values, aliases expanded; some seconds to read
MOST_CHARACTERS = 10_000_000  # the same, of all texts
MOST_DIGITS = 100  # of a number as it is written
_TAG = "tag:yaml.org,2002:"


def parse(text: str, place: Place) -> Node | None:
    """YAML 1.2 text as a tree; None when there is nothing in it."""
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = MOST_DEPTH
    yaml.Composer = _Composer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML allows it: the later one holds
            root = yaml.compose(text)
        if root is None:
            return None
        _expand(root, {}, place)
    except _TooManyError:
        raise _too_large(place) from None
    except (MaxDepthExceededError, RecursionError) as error:
        raise _too_deep(place.at(getattr(error, "problem_mark", None))) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not valid YAML"
        raise place.at(mark).error(f"not valid YAML: {problem}", rule="recipe-yaml") from None
    except YAMLError as error:
        raise place.error(f"not valid YAML: {str(error).splitlines()[0]}", rule="recipe-yaml") from None
    except KeyError as error:  # of %YAML: the reader looks it up
        raise place.error(f"not valid YAML: there is no version {error} of it", rule="recipe-yaml") from None
    return Builder(yaml, place).build(root)


class _TooManyError(Exception):
    """There are more values than are read."""


class _Composer(Composer):
    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            raise _TooManyError
        return super().compose_node(parent, index)


class _Size(NamedTuple):
    """Of a value with its aliases expanded."""

    values: int
    characters: int
    depth: int


def _expand(node: Any, known: dict[int, _Size | None], place: Place) -> _Size:
    """The size that a value would have, each shared one looked at once. It recurses no deeper than the text's."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise place.at(node.start_mark).error(
                "an alias inside the value that it refers to", "write the value out", rule="recipe-alias-loop"
            )
        return size
    known[id(node)] = None
    values, characters, depth = 1, 0, 0
    below = [each for pair in node.value for each in pair] if isinstance(node, MappingNode) else node.value
    if isinstance(node, ScalarNode):
        below, characters = [], len(node.value)
    for child in below:
        size = _expand(child, known, place)
        values, characters, depth = values + size.values, characters + size.characters, max(depth, size.depth + 1)
    if values > MOST_VALUES or characters > MOST_CHARACTERS:
        raise _too_large(place.at(node.start_mark))
    if depth > MOST_DEPTH:
        raise _too_deep(place.at(node.start_mark))
    known[id(node)] = made = _Size(values, characters, depth)
    return made


def _too_large(place: Place) -> Exception:
    return place.error(
        f"more than {MOST_VALUES:,} values, or {MOST_CHARACTERS:,} characters, once its aliases are expanded",
        "put lists of data into a file of their own, and name it",
        rule="recipe-expansion",
    )


def _too_deep(place: Place) -> Exception:
    return place.error(f"nested deeper than {MOST_DEPTH} levels", "no key needs that", rule="recipe-nesting")


class Builder:
    """Makes tree nodes of YAML's."""

    def __init__(self, yaml: YAML, place: Place) -> None:
        self.constructor, self.place = yaml.constructor, place

    def build(self, node: Any) -> Node:
        place = self.place.at(node.start_mark)
        if isinstance(node, MappingNode):
            return Node(self.mapping(node), place)
        if isinstance(node, SequenceNode):
            return Node([self.build(item) for item in node.value], place)
        return Node(self.scalar(node, place), place)

    def mapping(self, node: MappingNode) -> dict[str, Node]:
        made: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self.place.at(key_node.start_mark)
            key = self.scalar(key_node, place) if isinstance(key_node, ScalarNode) else None
            if key == "<<":
                hint = "use `extends:`, or write the keys out"
                raise place.error("merge keys are not read here", hint, rule="recipe-yaml-feature")
            if not isinstance(key, str):
                raise place.error("a key must be a string", rule="recipe-yaml-feature")
            if key in made:
                first = made[key].key_place
                line = first.line if first else "?"
                raise place.error(f"duplicate key {key!r}, first in line {line}", rule="recipe-duplicate-key")
            child = self.build(value_node)
            made[key] = Node(child.value, child.place, key_place=place)
        return made

    def scalar(self, node: ScalarNode, place: Place) -> str | int | float | bool | None:
        tag = str(node.tag)
        if tag in (f"{_TAG}timestamp", f"{_TAG}merge", f"{_TAG}value", f"{_TAG}str"):
            try:  # JSON writes a character beyond the first 65,536 as two escapes
                return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                message = "a text holds half a character (one \\u escape of two)"
                raise place.error(message, rule="recipe-half-character") from None
        if tag in (f"{_TAG}int", f"{_TAG}float"):
            return self.number(node, place)
        if tag in (f"{_TAG}bool", f"{_TAG}null"):
            return self.constructor.construct_object(node)
        raise place.error(f"tags such as {node.tag} are not read here", rule="recipe-yaml-feature")

    def number(self, node: ScalarNode, place: Place) -> int | float:
        """A number that a machine has: 64 bits, and finite."""
        if len(node.value) > MOST_DIGITS:
            raise place.error(f"a number of more than {MOST_DIGITS} digits", rule="recipe-number-size")
        try:
            made = self.constructor.construct_object(node)
        except (ValueError, OverflowError):
            raise place.error(f"{node.value!r} is not a number", rule="recipe-number-form") from None
        if isinstance(made, int) and not -(2**63) <= made < 2**63:
            raise place.error(f"{node.value} does not fit into 64 bits", rule="recipe-number-size")
        if isinstance(made, float) and not math.isfinite(made):
            raise place.error(f"{node.value} is not a finite number", rule="recipe-number-finite")
        return made
