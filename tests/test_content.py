"""Shipped content is found by name, and never somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain import shipped as content
from posttrain.errors import InputError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder as in site-packages: nothing beside it that is ours."""
    package = tmp_path / "posttrain"
    package.mkdir()
    monkeypatch.setattr(content, "_PACKAGE", package)
    return package


def test_every_kind_ships_something() -> None:
    assert "quickstart" in content.names("recipes")
    assert {"word-problems.py", "notes.py", "readers.py", "gsm8k.py"} <= set(content.names("reward"))
    assert "word-problems.train.jsonl" in content.names("data")
    assert not any(name.endswith(".cases.jsonl") for name in content.names("reward"))


def test_names_lead_to_files() -> None:
    assert content.recipe_path("quickstart") == content.recipe_path("quickstart.yaml")
    assert content.recipe_path("quickstart").is_file()
    assert content.reward_path("word-problems.py").is_file()
    assert content.locate("data", "word-problems.dev.jsonl").is_file()
    assert content.locate("data", "/a/b.jsonl") == Path("/a/b.jsonl")


def test_an_unknown_name_lists_the_near_one() -> None:
    with pytest.raises(InputError) as e:
        content.reward_path("word-problem.py")
    assert "nothing shipped under reward/ is called 'word-problem.py', did you mean 'word-problems.py'?" in str(e.value)
    assert e.value.hint is not None and "word-problems.py" in e.value.hint


@pytest.mark.parametrize("name", ["../pyproject.toml", ".", "..", "", "__pycache__"])
def test_nothing_but_what_is_shipped_is_reached(name: str) -> None:
    with pytest.raises(InputError):
        content.data_path(name)


def test_a_data_folder_of_another_package_is_not_ours(installed: Path) -> None:
    (installed.parent / "data").mkdir()
    (installed.parent / "data" / "theirs.jsonl").touch()
    assert content.names("data") == []


def test_an_installed_package_reads_its_own_content(installed: Path) -> None:
    shipped = installed / "_content" / "data"
    shipped.mkdir(parents=True)
    (shipped / "__init__.py").touch()
    (shipped / "mine.jsonl").touch()
    (shipped / "model").mkdir()
    (shipped / "model" / "config.json").touch()
    assert content.names("data") == ["mine.jsonl", "model"]
    assert content.data_path("model") == shipped / "model"
