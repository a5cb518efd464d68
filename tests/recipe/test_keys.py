"""What of a section is in a stage's key is marked on the field; both parts together are the section again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from posttrain.config import RewardModel, Sft
from posttrain.config.keys import KeyedAs, KeyedByName, KeyedUnlessDefault, NotInKey, join
from posttrain.config.problems import check
from posttrain.config.section import Section
from posttrain.config.tree import Place
from posttrain.errors import RecipeError
from posttrain.filters import parse as parse_filter
from posttrain.recipe.yaml_tree import parse


class Inner(Section):
    path: Annotated[str, KeyedByName()] = "a/b.md"
    how: Annotated[int, NotInKey()] = 3
    what: int = 4


class Outer(Section):
    kept: float = 0.5
    aliased: str | None = Field(default=None, alias="for")
    words: Annotated[str | None, KeyedAs("words")] = None
    newer: Annotated[bool, KeyedUnlessDefault()] = False
    one: Inner = Inner()
    several: list[Inner] = Field(default=[])


def test_each_mark() -> None:
    assert Outer().in_key() == {
        "kept": 0.5,
        "for": None,
        "words": None,
        "one": {"path": "b.md", "what": 4},
        "several": [],
    }
    assert Outer().not_in_key() == {"one": {"path": "a/b.md", "how": 3}}
    changed = Outer.model_validate({"words": "x/y.txt", "newer": True, "several": [{"path": "c.md"}, {"how": 5}]})
    assert (changed.in_key()["words"], changed.in_key()["newer"]) == ("words", True)
    assert changed.in_key(exclude=("one",)).keys() == {"kept", "for", "words", "newer", "several"}


def test_where_a_file_lies_and_how_it_is_asked_change_no_key() -> None:
    assert Inner(path="elsewhere/b.md", how=9).in_key() == Inner().in_key() != Inner(path="a/c.md").in_key()


def test_a_name_that_a_key_had_in_earlier_versions_names_the_new_one() -> None:
    class Renamed(Section):
        formerly: ClassVar[dict[str, str]] = {"sort": "kind"}
        kind: int = 0
        sorts: int = 0

    tree = parse("{sort: 3}", Place("mine.yaml", Path()))
    assert tree is not None
    with pytest.raises(RecipeError, match=r"mine.yaml:1:2: unknown key 'sort', which is called 'kind' now") as caught:
        check(Renamed, tree)
    assert caught.value.rule == "recipe-unknown-key"


def test_the_parts_make_the_section_again() -> None:
    given: dict[str, Any] = {"for": "x", "words": "x/y.txt", "several": [{"path": "d/c.md"}, {"how": 5, "what": 6}]}
    section = Outer.model_validate(given)
    assert Outer.restored(section.in_key(), section.not_in_key()) == section
    assert Outer.restored(section.in_key()).one.how == 3  # what nobody says is the default
    assert join([{"a": 1}], [{"b": 2}]) == [{"a": 1, "b": 2}] and join({"a": 1}, None) == {"a": 1}


def test_trained_sections_come_back_whole() -> None:
    for section in (
        Sft.model_validate({"per_device_train_batch_size": 3, "logging_steps": 7, "variants": [{"seed": 2}]}),
        RewardModel.model_validate({"gradient_accumulation_steps": 5, "learning_rate": 1e-3}),
    ):
        assert type(section).restored(section.in_key(), section.not_in_key()) == section


@pytest.mark.parametrize(
    ("filter_", "keyed"),
    [
        (
            {"use": "judge", "rubric": "a/quality.md", "judge": {"path": "x/m", "timeout": 3.0}},
            {"rubric": "quality.md"},
        ),
        ({"use": "classifier", "model": "a/b", "label": "x"}, {"model": "b"}),
        ({"use": "unsafe-words", "file": "a/words.txt"}, {"file": "words"}),
        ({"use": "learned-quality", "model": "runs/a/classifier-0"}, {"model": "classifier"}),
        ({"use": "near-duplicates", "across_rounds": True}, {"across_rounds": True}),
    ],
)
def test_filters(filter_: dict[str, Any], keyed: dict[str, Any]) -> None:
    (one,) = parse_filter([filter_])
    assert keyed.items() <= one.in_key().items()
    assert parse_filter([join(one.in_key(), one.not_in_key())]) == [one]
