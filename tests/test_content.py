"""Shipped content is found by name, and never somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain import shipped
from posttrain.errors import InputError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder as in site-packages: nothing beside it that is ours."""
    package = tmp_path / "posttrain"
    package.mkdir()
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    return package


def test_every_kind_ships_something() -> None:
    assert "quickstart" in shipped.names("recipes")
    assert {"word-problems.py", "notes.py", "readers.py", "gsm8k.py"} <= set(shipped.names("reward"))
    assert "word-problems.train.jsonl" in shipped.names("data")
    assert not any(name.endswith(".cases.jsonl") for name in shipped.names("reward"))


def test_names_lead_to_files() -> None:
    assert shipped.recipe_path("quickstart") == shipped.recipe_path("quickstart.yaml")
    assert shipped.recipe_path("quickstart").is_file()
    assert shipped.locate("reward", "word-problems.py").is_file()
    assert shipped.locate("data", "word-problems.dev.jsonl").is_file()
    assert shipped.locate("data", "/a/b.jsonl") == Path("/a/b.jsonl")


def test_an_unknown_name_lists_the_near_one() -> None:
    with pytest.raises(InputError) as e:
        shipped.locate("reward", "word-problem.py")
    assert "nothing shipped under reward/ is called 'word-problem.py', did you mean 'word-problems.py'?" in str(e.value)
    assert e.value.hint is not None and "word-problems.py" in e.value.hint


@pytest.mark.parametrize("name", [".", "..", "", "__pycache__"])
def test_nothing_but_what_is_shipped_is_reached(name: str) -> None:
    for kind in ("data", "reward", "recipes"):
        with pytest.raises(InputError):
            shipped.locate(kind, name)


def test_a_recipe_of_that_name_is_not_looked_for_outside() -> None:
    with pytest.raises(InputError):
        shipped.recipe_path("../pyproject.toml")


def test_a_data_folder_of_another_package_is_not_ours(installed: Path) -> None:
    (installed.parent / "data").mkdir()
    (installed.parent / "data" / "theirs.jsonl").touch()
    assert shipped.names("data") == []


def test_an_installed_package_reads_its_own_content(installed: Path) -> None:
    folder = installed / "_content" / "data"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "mine.jsonl").touch()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").touch()
    assert shipped.names("data") == ["mine.jsonl", "model"]
    assert shipped.locate("data", "model") == folder / "model"
