"""Validates a recipe tree with pydantic; errors have the file, line and column of the key at fault."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from posttrain.config.tree import Node, Path_
from posttrain.errors import RecipeError, did_you_mean

_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}
_FORM = {"string_pattern_mismatch", "string_too_short", "string_too_long", "too_short", "too_long"}

M = TypeVar("M", bound=BaseModel)


def check(cls: type[M], tree: Node) -> M:
    """Validates the tree as `cls`. A null that overrides an inherited value resets the key to its default where the key
    does not allow null.

    Raises:
        RecipeError: one for all keys at fault. Position and message are the first one's; the hint lists others.
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
    raise RecipeError(
        first.message, file=first.file, line=first.line, column=first.column, hint=hint or None, rule=first.rule
    )


def _take_away(tree: Node, loc: Path_) -> bool:
    """Removes the null at `loc` if it overrides an inherited value. Returns whether it did."""
    parent, node = _follow(tree, loc[:-1]), _follow(tree, loc)
    if node is None or node.value is not None or not node.overrides:
        return False
    if parent is None or not isinstance(parent.value, dict):
        return False
    parent.value.pop(str(loc[-1]))
    return True


def _follow(tree: Node, loc: Path_) -> Node | None:
    """The node at this path, None if there is none."""
    node: Node | None = tree
    for key in loc:
        node = node.child(key) if node else None
    return node


class KeyProblem(NamedTuple):
    """A pydantic error in our words. `of_key`: the position to show is the key's, not the value's."""

    message: str
    rule: str
    hint: str | None = None
    of_key: bool = True


def _as_error(tree: Node, problem: Any) -> RecipeError:
    loc: Path_ = ()
    node = tree
    for key in problem["loc"]:  # pydantic adds the member of a union that it tried: the tree has no such key
        below = node.child(key)
        if below is None:
            break
        loc, node = (*loc, key), below
    translated = in_our_words(problem, ".".join(map(str, loc)))
    place = (node.key_place or node.place) if translated.of_key else node.place
    return place.error(translated.message, translated.hint, rule=translated.rule)


def in_our_words(problem: Any, name: str) -> KeyProblem:
    """Translates one of pydantic's errors (of `ValidationError.errors()`) about the key `name`, a dotted path."""
    kind, context, value = problem["type"], problem.get("ctx", {}), problem["input"]
    if kind == "unknown_key":
        where = name.rpartition(".")[0] if name.endswith(str(problem["loc"][-1])) else name
        message = f"unknown key {problem['loc'][-1]!r}{f' in {where!r}' if where else ''}{context['near']}"
        return KeyProblem(message, hint=context.get("hint"), rule="recipe-unknown-key")
    if kind == "missing":
        return KeyProblem(
            f"{problem['loc'][-1]!r} is missing{f' in {name!r}' if name else ''}", rule="recipe-missing-key"
        )
    if kind == "recipe":
        return KeyProblem(problem["msg"], hint=context.get("hint"), rule=context["rule"])
    name = name or "the recipe"
    if value is None:
        return KeyProblem(
            f"{name!r} must not be null", hint="leave the key out to have its default", rule="recipe-null"
        )
    must = problem["msg"].replace("Input should be", "must be").replace("Input should have", "must have")
    must = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", must)
    must = must.replace("a valid integer", "an integer").replace("a valid ", "a ").replace("a boolean", "true or false")
    message = f"{name!r} {must}, not {said(value)}"
    if kind == "literal_error":
        near = did_you_mean(str(value), re.findall(r"'([^']*)'", context["expected"]))
        return KeyProblem(message + near, of_key=False, rule="recipe-choice")
    if kind in _RANGE:
        return KeyProblem(message, of_key=False, rule="recipe-range")
    if kind in _FORM:
        return KeyProblem(message, of_key=False, rule="recipe-form")
    return KeyProblem(message, of_key=False, rule="recipe-type")


def said(value: object) -> str:
    """The value as JSON, which is how a recipe would write it, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
