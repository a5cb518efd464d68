"""A recipe as a tree that remembers where each key and value stands."""

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
    """Where something stands: a file with line and column (from 1), or `--set a.b` without.

    `folder` is what relative paths written there are relative to.
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
        """The value without places."""
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
    """`over` on top of `base`: mappings key by key, anything else replaced.

    `exclusive` says, by path (`*` for any key), which two groups of keys exclude one another: one
    that is given on top takes away the inherited ones of the other group.
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
    """Whether a path has a pattern's form; `*` stands for any one key or index."""
    return len(pattern) == len(path) and all(p in ("*", q) for p, q in zip(pattern, path, strict=True))


class Places(dict[str, tuple[str, int | None, int | None]]):
    """File, line and column of keys, by their names. Two recipes that say the same are equal wherever they say it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places)

    __hash__ = None  # as of every dict


def places(tree: Node) -> Places:
    """The place of every key of the tree, by its name: `dpo.variants.0.optim`."""
    found = Places()
    for path, node in walk(tree):
        if path:
            place = node.key_place or node.place
            found[".".join(map(str, path))] = (place.file, place.line, place.column)
    return found
