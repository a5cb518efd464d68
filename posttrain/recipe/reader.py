"""Reads a recipe's YAML into a tree that remembers where each key and value stands.

`extends:` and `--set` change the tree; then it is checked, and what is wrong is told with the file,
line and column of the key that is wrong. Knows nothing of which keys there are: see recipe.py.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from posttrain.content import did_you_mean
from posttrain.errors import RecipeError

Path_ = tuple[str | int, ...]

M = TypeVar("M", bound=BaseModel)

_MOST_NODES = 100_000  # aliases of aliases can make a page of YAML into gigabytes
_TAG = "tag:yaml.org,2002:"


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

    def error(self, message: str, hint: str | None = None) -> RecipeError:
        return RecipeError(message, file=self.file, line=self.line, column=self.column, hint=hint)


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


def read(path: Path, shown_as: str | None = None) -> Node:
    """The tree of one file. Raises RecipeError at the line and column that is wrong."""
    place = Place(shown_as or str(path), path.resolve().parent)
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise place.error(f"not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise place.error(f"cannot be read: {error.strerror}") from None
    tree = parse(text, place)
    if tree is None:
        raise place.error("the recipe is empty")
    if not isinstance(tree.value, dict):
        raise tree.place.error("a recipe is a mapping of keys to values")
    return tree


def parse(text: str, place: Place) -> Node | None:
    """YAML 1.2 text as a tree; None when there is nothing in it."""
    yaml = YAML(typ="safe", pure=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML allows it: the later one holds
            root = yaml.compose(text)
        if root is None:
            return None
        return _Builder(yaml, place).build(root)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "not valid YAML"
        raise place.at(mark).error(f"not valid YAML: {problem}") from None
    except (YAMLError, RecursionError) as error:
        raise place.error(f"not valid YAML: {str(error).splitlines()[0]}") from None
    except KeyError as error:  # of %YAML: the reader looks it up
        raise place.error(f"not valid YAML: there is no version {error} of it") from None


class _Builder:
    def __init__(self, yaml: YAML, place: Place) -> None:
        self.constructor, self.place, self.made = yaml.constructor, place, 0

    def build(self, node: Any) -> Node:
        self.made += 1
        place = self.place.at(node.start_mark)
        if self.made > _MOST_NODES:
            raise place.error("the recipe is too large, or an alias stands inside itself")
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
                raise place.error("merge keys are not read here", "use `extends:`, or write the keys out")
            if not isinstance(key, str):
                raise place.error("a key must be a string")
            if key in made:
                first = made[key].key_place
                raise place.error(f"{key!r} stands here twice, first in line {first.line if first else '?'}")
            child = self.build(value_node)
            made[key] = Node(child.value, child.place, key_place=place)
        return made

    def scalar(self, node: ScalarNode, place: Place) -> str | int | float | bool | None:
        tag = str(node.tag)
        if tag in (f"{_TAG}timestamp", f"{_TAG}merge", f"{_TAG}value", f"{_TAG}str"):
            try:  # JSON writes a character beyond the first 65,536 as two escapes
                return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise place.error("a text holds half a character (one \\u escape of two)") from None
        if tag in (f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool", f"{_TAG}null"):
            try:
                return self.constructor.construct_object(node)
            except ValueError:
                raise place.error(f"{node.value!r} is not a number") from None
        raise place.error(f"tags such as {node.tag} are not read here")


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


def matches(pattern: Path_, path: Path_) -> bool:
    """Whether a path has a pattern's form; `*` stands for any one key or index."""
    return len(pattern) == len(path) and all(p in ("*", q) for p, q in zip(pattern, path, strict=True))


def override(text: str, tree: Node, folder: Path) -> Node:
    """The tree that a `--set a.b=c` alone would be, for merging on top of `tree` (which decides what is a list).

    Raises RecipeError that names `--set a.b`.
    """
    name, equals, value = text.partition("=")
    place = Place(f"--set {name.strip()}", folder, has_lines=False)
    if not equals or not name.strip():
        raise Place(f"--set {text}", folder).error("no value", "write --set key.below=value")
    if not value.strip():
        raise place.error("no value", f"write {name.strip()}=null to take it away")
    node = _set_value(value.strip(), place)
    keys = name.strip().split(".")
    if any(not key for key in keys):
        raise place.error("a key is empty")
    return _wrap(keys, node, tree, place, ())


def _set_value(text: str, place: Place) -> Node:
    """Brackets and quotes are YAML; all else is one plain scalar, so that ` #` or `: ` in a text stay in it."""
    if text[0] in "[{\"'":
        return parse(text, place) or Node(None, place)
    yaml = YAML(typ="safe", pure=True)
    tag = yaml.resolver.resolve(ScalarNode, text, (True, False))
    return _Builder(yaml, place).build(ScalarNode(tag, text))


def _wrap(keys: list[str], leaf: Node, below: Node | None, place: Place, done: tuple[str, ...]) -> Node:
    if not keys:
        return replace(leaf, key_place=place)
    key, rest = keys[0], keys[1:]
    if below is not None and isinstance(below.value, list):
        if not key.isdigit() or int(key) >= len(below.value):
            name = ".".join(done)
            raise place.error(f"'{name}' is a list of {len(below.value)}: {key!r} is not one of its numbers from 0")
        items = list(below.value)
        items[int(key)] = _replaced(items[int(key)], _wrap(rest, leaf, items[int(key)], place, (*done, key)))
        return Node(items, place, key_place=place)
    if below is not None and below.value is not None and not isinstance(below.value, dict):
        raise place.error(f"'{'.'.join(done)}' is {below.value!r}, which has no keys below it")
    child = below.child(key) if below is not None else None
    return Node({key: _wrap(rest, leaf, child, place, (*done, key))}, place, key_place=place)


def _replaced(old: Node, new: Node) -> Node:
    return merge(old, new, {})


def check(cls: type[M], tree: Node) -> M:
    """The tree as an object of `cls`. Raises one RecipeError that names every key that is wrong, the first one first.

    A null that took an inherited value away and that its key does not allow means: back to the default.
    """
    try:
        return cls.model_validate(tree.plain())
    except ValidationError as error:
        problems = error.errors(include_url=False)
    if any(_take_away(tree, problem["loc"]) for problem in problems):  # one at a time: each changes the tree
        return check(cls, tree)
    found = sorted((_as_error(tree, problem) for problem in problems), key=lambda error: error.line or 0)
    first = found[0]
    others = [f"also {str(other).splitlines()[0]}" for other in found[1:] if other.message != first.message][:5]
    hint = "\n  ".join([*([first.hint] if first.hint else []), *others])
    raise RecipeError(first.message, file=first.file, line=first.line, column=first.column, hint=hint or None)


def _take_away(tree: Node, loc: Path_) -> bool:
    parent, node = _follow(tree, loc[:-1]), _follow(tree, loc)
    if node is None or node.value is not None or not node.overrides or parent is None:
        return False
    if isinstance(parent.value, dict):
        parent.value.pop(str(loc[-1]))
    return True


def places(node: Node, path: Path_ = ()) -> dict[str, tuple[str, int | None, int | None]]:
    """File, line and column of every key of the tree, by its name: `dpo.variants.0.optim`."""
    place = node.key_place or node.place
    found = {".".join(map(str, path)): (place.file, place.line, place.column)} if path else {}
    if isinstance(node.value, (dict, list)):
        below = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
        for key, child in below:
            found |= places(child, (*path, key))
    return found


def _follow(tree: Node, loc: Path_) -> Node | None:
    node: Node | None = tree
    for key in loc:
        node = node.child(key) if node else None
    return node


def _as_error(tree: Node, problem: Any) -> RecipeError:
    loc: Path_ = ()
    node = tree
    for key in problem["loc"]:  # pydantic adds the member of a union that it tried: the tree has no such key
        below = node.child(key)
        if below is None:
            break
        loc, node = (*loc, key), below
    place = node.place
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    name = ".".join(map(str, loc)) or "the recipe"
    if kind == "unknown_key":
        where = ".".join(map(str, loc[:-1]))
        message = f"unknown key {problem['loc'][-1]!r}{f' in {where!r}' if where else ''}{context['near']}"
        return (node.key_place or place).error(message, context.get("hint"))
    if kind == "missing":
        key = problem["loc"][-1]
        return (node.key_place or place).error(f"{key!r} is missing{f' in {name!r}' if loc else ''}")
    if kind == "recipe":
        return (node.key_place or place).error(problem["msg"], context.get("hint"))
    if kind == "value_error":
        return place.error(f"{name!r}: {problem['msg'].removeprefix('Value error, ')}")
    if value is None:
        return (node.key_place or place).error(f"{name!r} must not be null", "leave the key out to have its default")
    must = problem["msg"].replace("Input should be", "must be").replace("Input should have", "must have")
    must = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", must)
    must = must.replace("a valid integer", "an integer").replace("a valid ", "a ").replace("a boolean", "true or false")
    near = ""
    if kind == "literal_error":
        near = did_you_mean(str(value), re.findall(r"'([^']*)'", context["expected"]))
    return place.error(f"{name!r} {must}, not {said(value)}{near}")


def said(value: object) -> str:
    """A value as a recipe would write it, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
