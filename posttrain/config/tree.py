"""A recipe as a tree of values, each with its position in the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.errors import RecipeError

Path_ = tuple[str | int, ...]

_LONGEST = 2000  # characters of a message: a key or value may have millions


@dataclass(frozen=True)
class Place:
    """A position: file, line and column (from 1), or `--set a.b` without these.

    `folder`: the base of relative paths that are written there.
    """

    file: str
    folder: Path
    line: int | None = None
    column: int | None = None
    has_lines: bool = True

    def at(self, mark: Any) -> Place:
        if mark is None or not self.has_lines:
            return self
        return replace(self, line=mark.line + 1, column=mark.column + 1)

    def error(self, message: str, hint: str | None = None, *, rule: str) -> RecipeError:
        message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]} ..."
        return RecipeError(message, file=self.file, line=self.line, column=self.column, hint=hint, rule=rule)


@dataclass
class Node:
    """One value of the tree. `overrides`: it replaced an inherited value."""

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    place: Place
    key_place: Place | None = None
    overrides: bool = False

    def plain(self) -> Any:
        """The value as plain dicts, lists and scalars, without positions."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        if isinstance(self.value, dict) and isinstance(key, str):
            return self.value.get(key)
        if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            return self.value[key]
        return None


def merge(base: Node, over: Node, exclusive: dict[Path_, tuple[set[str], set[str]]], path: Path_ = ()) -> Node:
    """Merges `over` into `base`: mappings key by key; any other value is replaced.

    `exclusive` maps a path (`*` matches any key) to two groups of mutually exclusive keys: a key of one group in `over`
    removes the inherited keys of the other.
    """
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return replace(over, overrides=True)
    merged = dict(base.value)
    for pattern, groups in exclusive.items():
        if matches(pattern, path):
            for mine, others in (groups, groups[::-1]):
                if any(key in over.value for key in mine):
                    merged = {key: child for key, child in merged.items() if key not in others or key in mine}
    for key, child in over.value.items():
        below = merged.get(key)
        merged[key] = merge(below, child, exclusive, (*path, key)) if below else child
    return Node(merged, over.place, key_place=over.key_place or base.key_place)


def walk(node: Node, path: Path_ = ()) -> Iterator[tuple[Path_, Node]]:
    """The node and all below it, in the file's order, each with its path."""
    yield path, node
    if isinstance(node.value, dict | list):
        below = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
        for key, child in below:
            yield from walk(child, (*path, key))


def matches(pattern: Path_, path: Path_) -> bool:
    """Whether the path matches the pattern, in which `*` is any one key or index."""
    return len(pattern) == len(path) and all(p in ("*", q) for p, q in zip(pattern, path, strict=True))


class Places(dict[str, tuple[str, int | None, int | None]]):
    """File, line and column of keys, by dotted name. All instances compare equal, so that recipes with the same values
    do, wherever they were written."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places)

    __hash__ = None  # as of every dict


def places(tree: Node) -> Places:
    """The position of every key in the tree, by dotted name such as `dpo.variants.0.optim`."""
    found = Places()
    for path, node in walk(tree):
        if path:
            place = node.key_place or node.place
            found[".".join(map(str, path))] = (place.file, place.line, place.column)
    return found
