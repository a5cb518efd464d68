"""What the sections of all trained stages have in common: TRL's fields under their own names, and variants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from posttrain.config import trl_fields
from posttrain.config.keys import NotInKey
from posttrain.config.section import Section, below, complain

# Micro-batch and accumulation count only as their product.
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


class Trained(Section):
    """A trained stage: a few keys of ours, plus TRL's fields under their own names.

    A subclass says all that other modules must know of it, and stands in `training.TRAINED`. `trainer`: the stage's
    name; `trl_config`: TRL's class of its fields; `refused`: those of them that it may not set, and why, beside
    `trl_fields.REFUSED`; `shown`: those that are written out beside `trl_fields.SHOWN`; `made_with`: our keys that its
    trainer is made with; `one_or_more`: our lists that may be written as one of their items; `copies`: of the model, in
    memory beside the one that is trained; `alone`: it is trained by one process.
    """

    model_config = ConfigDict(extra="allow")
    trainer: ClassVar[str]
    trl_config: ClassVar[str]
    shown: ClassVar[tuple[str, ...]] = ()
    made_with: ClassVar[tuple[str, ...]] = ()
    one_or_more: ClassVar[tuple[str, ...]] = ()
    copies: ClassVar[int] = 0
    alone: ClassVar[bool] = False
    variants: Annotated[list[dict[str, Any]], NotInKey()] = Field(default=[])  # each is a stage of its own
    """Each is this section with these keys changed, and a `seed` (default 0). All are trained and their weights
    averaged; the average is used, or the best variant if that is better on dev."""

    @model_validator(mode="before")
    @classmethod
    def _shown_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = trl_fields.fields(cls.trainer)
        shown = {key: known[key]["default"] for key in (*trl_fields.SHOWN, *cls.shown)}
        lists = {key: [given[key]] for key in cls.one_or_more if isinstance(given.get(key), str)}
        return {key: _as_typed(known.get(key), value) for key, value in {**shown, **given, **lists}.items()}

    @classmethod
    def _unknown(cls, key: str, value: Any, known: list[str]) -> None:
        wrong = trl_fields.problem(cls.trainer, key, value, tuple(known), cls.refused)
        if wrong:
            complain((key,), wrong.message, rule=wrong.rule)

    @model_validator(mode="after")
    def _variants_fit(self) -> Trained:
        for index, changes in enumerate(self.variants):
            seed = changes.get("seed", 0)
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
                complain(
                    ("variants", index, "seed"), "a variant's seed is a whole number from 0 up", rule="recipe-variant"
                )
            for key in ("variants", "reference", "given"):
                if key in changes:
                    complain(("variants", index, key), f"{key!r} is the same for all variants", rule="recipe-variant")
            try:
                self.variant(index)
            except ValidationError as error:
                raise below(("variants", index), error) from None
        return self

    def variant(self, index: int) -> Self:
        """The section of one variant. Its seed is not in it."""
        changes = {key: value for key, value in self.variants[index].items() if key != "seed"}
        return type(self).model_validate(_changed(self.model_dump(by_alias=True, exclude={"variants"}), changes))

    @property
    def sources(self) -> list[str]:
        """The tables of a round that the stage learns from, where the recipe says which."""
        return []

    @classmethod
    def known_fields(cls) -> Mapping[str, dict[str, Any]]:
        """TRL's fields by name, those that may not be set too: see `trl_fields.fields`."""
        return trl_fields.fields(cls.trainer)

    @property
    def trl_name(self) -> str:
        """The name under which `trl_fields` has its fields."""
        return self.trainer

    @property
    def trl_class(self) -> str:
        """The name of TRL's class of its fields."""
        return self.trl_config

    @property
    def fewest(self) -> int:
        """The rows of a step are a multiple of it."""
        return 1

    @property
    def own_fields(self) -> dict[str, Any]:
        """The TRL fields that follow from keys of ours."""
        return {}

    @property
    def trl(self) -> dict[str, Any]:
        """TRL's fields: those that the recipe sets, and the defaults that are always written out."""
        return dict(self.model_extra or {})

    def divided(self, exclude: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in every section; of TRL's fields those that decide a result, and the rows of a step as `batch`."""
        keyed, rest = super().divided(exclude)
        how = {*trl_fields.HOW_ONLY, *BATCH}
        micro, accumulation = (keyed[name] for name in BATCH)
        keyed = {key: value for key, value in keyed.items() if key not in how}
        rest |= {key: value for key, value in self.trl.items() if key in how}
        return {**keyed, "batch": micro * accumulation}, rest

    @classmethod
    def restored(cls, in_key: Mapping[str, Any], not_in_key: Mapping[str, Any] | None = None) -> Self:
        return super().restored({key: value for key, value in in_key.items() if key != "batch"}, not_in_key)


def _changed(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The section with these keys changed, key by key in mappings below, as a recipe that `extends` another has it."""
    below = {
        key: _changed(section[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(section.get(key), dict)
    }
    return {**section, **changes, **below}


def _as_typed(field: dict[str, Any] | None, value: Any) -> Any:
    """One form for one meaning, so that `2` and `2.0` epochs, or `sigmoid` and `[sigmoid]`, give one key."""
    if field and field["types"] == ["array"] and isinstance(value, str):
        return [value]
    if field and "number" in field["types"] and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
