"""The base class of a recipe's sections, common field types, and errors with a key's position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from posttrain.config.keys import Keyed
from posttrain.config.tree import Path_
from posttrain.errors import did_you_mean

MOST = 1_000_000_000  # the upper bound of numbers without one of their own
Count = Annotated[int, Field(ge=1, le=MOST)]
Few = Annotated[int, Field(ge=1, le=10_000)]  # processes, tries, answers to one prompt: each costs memory or time
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Real = Annotated[float, Field(ge=-1e308, le=1e308)]
Temperature = Annotated[float, Field(gt=0, le=10)]
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(Keyed):
    """A mapping of the recipe: unknown keys refused, types strict (no `"5"` for 5), frozen. What stands below a key is
    its description, in the JSON schema too."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )

    refused: ClassVar[dict[str, str]] = {}
    renamed: ClassVar[dict[str, str]] = {}  # names in other libraries: the key's name here
    formerly: ClassVar[dict[str, str]] = {}  # names in earlier versions: the key's name now

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key, value in given.items():
                if key not in known:
                    cls._unknown(key, value, known)
        return given

    @classmethod
    def _unknown(cls, key: str, value: Any, known: list[str]) -> None:
        if key in cls.refused:
            complain((key,), f"{key!r} cannot be set: {cls.refused[key]}", rule="recipe-refused-key")
        if key in cls.formerly:
            near = f", which is called {cls.formerly[key]!r} now"
        else:
            near = f", did you mean {cls.renamed[key]!r}?" if key in cls.renamed else did_you_mean(key, known)
        hint = None if near else f"keys here: {', '.join(known)}"
        _raise((key,), PydanticCustomError("unknown_key", "unknown key", {"near": near, "hint": hint}), value)


def complain(loc: Path_, message: str, hint: str | None = None, *, rule: str) -> NoReturn:
    """Raises an error that `check` turns into a RecipeError at the key `loc`, a path within this section."""
    context = {"message": message, "hint": hint, "rule": rule}
    _raise(loc, PydanticCustomError("recipe", "{message}", context), None)


def _raise(loc: Path_, error: PydanticCustomError, value: Any) -> NoReturn:
    raise ValidationError.from_exception_data("recipe", [InitErrorDetails(type=error, loc=loc, input=value)])


def below(loc: Path_, error: ValidationError) -> ValidationError:
    """The same errors, with `loc` prepended to each path."""
    problems = []
    for each in error.errors(include_url=False):
        kind, context = each["type"], each.get("ctx", {})
        problem: PydanticCustomError | str = kind
        if kind == "unknown_key":
            problem = PydanticCustomError("unknown_key", "unknown key", context)
        elif kind == "recipe":
            problem = PydanticCustomError("recipe", "{message}", context)
        problems.append(InitErrorDetails(type=problem, loc=(*loc, *each["loc"]), input=each["input"], ctx=context))
    return ValidationError.from_exception_data("recipe", problems)


T = TypeVar("T")


def of_round(entries: Sequence[T], number: int) -> T:
    """The entry for round `number`, counted from 1; rounds beyond the list use its last entry."""
    return entries[min(max(number, 1), len(entries)) - 1]
