"""Which fields of a section enter the cache key of a stage, marked on the field itself.

    timeout: Annotated[float, NotInKey()]                  # how, not what
    rubric: Annotated[str, KeyedByName()]                  # the file's name; its content is an external hash
    file: Annotated[str | None, KeyedAs("words")]          # whether there is one; its content is an external hash
    adapters: Annotated[Adapters, KeyedUnlessDefault()]    # newer than some runs: left out at its default

An unmarked field enters the key as it is. `in_key` and `not_in_key` divide a section into what decides a result and the
rest; `restored` puts them together again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel


class NotInKey:
    """The field does not enter the cache key: it says how or where to run, and does not change the result."""


class KeyedByName:
    """Only the last part of a path enters the key: the folder of a file does not change the result."""

    def short(self, path: str) -> str:
        return name_of(path)


@dataclass(frozen=True)
class KeyedAs:
    """The key has this word if the field is set."""

    word: str

    def short(self, path: str) -> str:
        return self.word


class KeyedUnlessDefault:
    """The field enters the key unless it has its default, so that runs made before it existed stay valid."""


class Keyed(BaseModel):
    """A pydantic model whose fields carry the marks of this module."""

    def in_key(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Fields that enter the cache key, as JSON values, without those in `exclude`. Newer fields are omitted at
        their defaults, so that existing runs stay valid."""
        return self.divided(exclude)[0]

    def not_in_key(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The other fields, nested as in the section."""
        return self.divided(exclude)[1]

    @classmethod
    def restored(cls, in_key: Mapping[str, Any], not_in_key: Mapping[str, Any] | None = None) -> Self:
        """The section rebuilt from both parts. Fields in neither take their defaults."""
        return cls.model_validate(join(in_key, not_in_key or {}))

    def divided(self, exclude: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both parts, as `in_key` and `not_in_key` give them."""
        keyed: dict[str, Any] = {}
        rest: dict[str, Any] = {}
        for key, value in self.model_dump(mode="json", by_alias=True, exclude=set(exclude)).items():
            name = self._named(key)
            field = type(self).model_fields.get(name)
            marks = field.metadata if field else []
            if any(isinstance(mark, NotInKey) for mark in marks):
                rest[key] = value
            elif not any(isinstance(mark, KeyedUnlessDefault) for mark in marks) or not self._is_default(name):
                inside, beside = _divide(getattr(self, name), value)
                short = next(
                    (mark.short(value) for mark in marks if value and isinstance(mark, KeyedByName | KeyedAs)), None
                )
                keyed[key] = short or inside
                if beside or keyed[key] != inside:
                    rest[key] = beside or value
        return keyed, rest

    def _is_default(self, name: str) -> bool:
        return getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True)

    def _named(self, key: str) -> str:
        return next((name for name, field in type(self).model_fields.items() if field.alias == key), key)


def name_of(path: str) -> str:
    """The last part of a path or Hub id."""
    return path.rstrip("/").rpartition("/")[2]


def _divide(value: Any, dumped: Any) -> tuple[Any, Any]:
    """The part of a field's value that enters the key, and the rest (empty if there is none)."""
    if isinstance(value, Keyed):
        return value.divided()
    if isinstance(value, list) and value and all(isinstance(one, Keyed) for one in value):
        parts, rests = (list(each) for each in zip(*(one.divided() for one in value), strict=True))
        return parts, rests if any(rests) else []
    return dumped, None


def join(in_key: Any, not_in_key: Any) -> Any:
    """The two parts of a section, or of a list of sections, as one value. None for `not_in_key`: no more."""
    if isinstance(in_key, Mapping) and isinstance(not_in_key, Mapping):
        rest = {key: join(in_key[key], value) if key in in_key else value for key, value in not_in_key.items()}
        return {**in_key, **rest}
    if isinstance(in_key, list) and isinstance(not_in_key, list) and len(in_key) == len(not_in_key):
        return [join(one, rest) for one, rest in zip(in_key, not_in_key, strict=True)]
    return in_key if not_in_key is None else not_in_key
