"""What a recipe may be: a regular file of a bounded size, with numbers that a machine has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import RecipeError
from posttrain.recipe.load import load
from posttrain.recipe.schema import schema
from posttrain.storage.regular_files import MOST_TEXT

_NINE = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
_STRINGS = "\n".join([f'a0: &a0 "{"x" * 2000}"', *_NINE[:4]])
_LISTS = "\n".join(["a0: &a0 [1]", *_NINE])
_CHAIN = "\n".join(["a0: &a0 1", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 200))])


def fails(name: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(name, overrides, files=False)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "odd.yaml"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (_STRINGS, "recipe-expansion"),
        (_LISTS, "recipe-expansion"),
        ("a: &a " + "x" * 200_000 + "\nb: [" + "*a, " * 100 + "]", "recipe-expansion"),
        ("a: [" + "1, " * 21_000 + "]", "recipe-expansion"),
        ("a: &a {b: *a}", "recipe-alias-loop"),
        ("a: &a [*a]", "recipe-alias-loop"),
        (_CHAIN, "recipe-nesting"),
        ("a: " + "[" * 100, "recipe-nesting"),
        ("- " * 10_000, "recipe-nesting"),
        ("a: " + "{b: " * 10_000, "recipe-nesting"),
        ("seed: " + "9" * 5000, "recipe-number-size"),
        ("seed: 0x" + "f" * 5000, "recipe-number-size"),
        ("seed: 0o" + "7" * 5000, "recipe-number-size"),
        ("seed: " + "1_000" * 2000, "recipe-number-size"),
        ("%YAML 1.1\n---\nseed: 1" + ":59" * 2000, "recipe-number-size"),
        ("seed: 0x" + "f" * 50, "recipe-number-size"),
        ("seed: 99999999999999999999", "recipe-number-size"),
        ("engine: {x: 1" + "0" * 400 + ".5}", "recipe-number-size"),
        ("seed: -.inf", "recipe-number-finite"),
        ("samples: {temperature: 1e999}", "recipe-number-finite"),
        ('name: "\\ud800"', "recipe-half-character"),
        ("<<: {a: 1}", "recipe-yaml-feature"),
        ("", "recipe-empty"),
        ("- a", "recipe-not-a-mapping"),
        ("a: b: c", "recipe-yaml"),
        ("a: 1\n---\nb: 2", "recipe-yaml"),
        ("a: \x00", "recipe-yaml"),
    ],
    ids=lambda given: given[:30],
)
def test_what_would_not_end_or_fit_is_refused(recipe: Path, text: str, rule: str) -> None:
    recipe.write_text(text)
    error = fails("./odd.yaml")
    assert (error.rule, error.file) == (rule, "odd.yaml")
    assert len(str(error)) < 3000


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("seed=0x" + "f" * 5000, "recipe-number-size"),
        ("seed=" + "9" * 5000, "recipe-number-size"),
        ("samples.temperature=.inf", "recipe-number-finite"),
        ("filters=" + "[" * 100, "recipe-nesting"),
        (".".join("a" * 2000) + "=1", "recipe-nesting"),
        ("filters=[&a [1, 1, 1, 1], *b]", "recipe-yaml"),
        ("reward.²=1", "recipe-set"),
        ("reward." + "9" * 5000 + "=1", "recipe-set"),
        ("reward.0=null", "recipe-null"),
        ("x" * 100_000 + "=1", "recipe-unknown-key"),
    ],
    ids=lambda given: given[:30],
)
def test_so_is_what_is_set(override: str, rule: str) -> None:
    assert fails("quickstart", override).rule == rule


def test_a_file_of_gigabytes_is_not_read(recipe: Path) -> None:
    with recipe.open("wb") as file:
        file.truncate(8 << 30)  # sparse
    assert fails("./odd.yaml").rule == "recipe-file-size"
    recipe.write_bytes(b"#" * MOST_TEXT + b"\n\n")
    assert fails("./odd.yaml").rule == "recipe-file-size"


def test_only_regular_files_are_read_and_nothing_hangs(recipe: Path) -> None:
    os.mkfifo(recipe)
    recipe.with_name("folder.yaml").mkdir()
    recipe.with_name("link.yaml").symlink_to("/dev/zero")
    for name in ("./odd.yaml", "./folder.yaml", "./link.yaml", "/dev/zero", "/proc/self/status"):
        assert fails(name).rule == "recipe-not-regular"
    recipe.with_name("child.yaml").write_text("extends: ./odd.yaml\n")
    error = fails("child.yaml")
    assert (error.rule, error.hint) == ("recipe-not-regular", "write what is to be read into a file, and name that")


def test_a_link_to_a_file_is_one(recipe: Path) -> None:
    recipe.write_text("extends: quickstart\n")
    recipe.with_name("link.yaml").symlink_to(recipe)
    assert load("link.yaml", files=False).name == "link"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(recipe: Path) -> None:
    recipe.touch(0)
    assert fails("./odd.yaml").rule == "recipe-unreadable"


def test_not_utf8(recipe: Path) -> None:
    recipe.write_bytes(b"seed: \xff\n")
    assert fails("./odd.yaml").rule == "recipe-not-utf8"


@pytest.mark.parametrize("key", ["reward.0.use", "prompts.train.path"])
def test_so_is_what_a_recipe_names(recipe: Path, key: str) -> None:
    os.mkfifo("pipe.py")
    with pytest.raises(RecipeError) as caught:
        load("quickstart", [f"{key}=./pipe.py"])
    assert caught.value.rule == "recipe-not-regular" and caught.value.file == f"--set {key}"


def test_a_reward_file_of_gigabytes(recipe: Path) -> None:
    with Path("huge.py").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(RecipeError) as caught:
        load("quickstart", ["reward.0.use=./huge.py"])
    assert caught.value.rule == "recipe-file-size"


def test_a_long_line_of_recipes(recipe: Path) -> None:
    for index in range(30):
        recipe.with_name(f"r{index}.yaml").write_text(f"extends: ./r{index + 1}.yaml\n")
    assert fails("./r0.yaml").rule == "recipe-extends"


def test_no_number_is_without_a_bound() -> None:
    def unbounded(node: Any, path: str) -> list[str]:
        if isinstance(node, list):
            return [each for at, child in enumerate(node) for each in unbounded(child, f"{path}/{at}")]
        if not isinstance(node, dict):
            return []
        kinds = node.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        lacks = {"integer", "number"} & {*kinds} and "enum" not in node
        lacks = lacks and not ({"minimum", "exclusiveMinimum"} & {*node} and {"maximum", "exclusiveMaximum"} & {*node})
        below = [each for key, child in node.items() for each in unbounded(child, f"{path}/{key}")]
        return [path, *below] if lacks else below

    assert unbounded(schema(), "") == []


@pytest.mark.parametrize(
    "override",
    ["samples.k=1000000", "sft.max_steps=1000000000000", "sft.ddp_timeout=99999999999", "sft.adam_beta1=-0.1"],
)
def test_a_number_out_of_its_range(override: str) -> None:
    assert fails("quickstart", override).rule == "recipe-range"
