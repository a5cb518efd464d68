"""The first commands: which recipes there are, one of them as a folder of one's own, and what machine this is."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from posttrain import shipped
from posttrain.cli import app
from posttrain.config import by_round
from posttrain.errors import InputError
from posttrain.pipeline.externals import external_inputs
from posttrain.recipe.copy import copy_recipe, first_sentence
from posttrain.recipe.load import load


def posttrain(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_recipes_lists_each_with_a_line() -> None:
    listed = {each["name"]: each for each in json.loads(posttrain("recipes", "--json").stdout)}
    assert list(listed) == shipped.names("recipes")
    assert all(each["about"].endswith(".") and Path(each["path"]).is_file() for each in listed.values())
    shown = posttrain("recipes").stdout.splitlines()
    assert [line.split()[0] for line in shown] == list(listed)


def test_a_recipe_s_line_is_the_first_sentence_on_its_top() -> None:
    text = "# yaml-language-server: $schema=x\n# Two rounds of 4.1 on\n# a model. More of it.\nmodel: {} # no. this\n"
    assert first_sentence(text) == "Two rounds of 4.1 on a model."


@pytest.mark.parametrize("name", shipped.names("recipes"))
def test_a_copy_is_the_same_recipe_and_names_only_its_own_files(tmp_path: Path, name: str) -> None:
    made = copy_recipe(name, tmp_path / "mine")
    assert made[0].name == f"{name}.yaml"
    assert all(path.is_file() and path.stat().st_mode & stat.S_IWUSR for path in made)
    one, copied = load(name, files=False), load(str(made[0]), files=False)
    for entry in [*copied.reward, *copied.evaluate.measure]:
        assert entry.is_reward_model or Path(entry.use).is_relative_to(tmp_path)
    for prompts in (*by_round(copied.prompts.train), copied.prompts.dev, copied.prompts.heldout):
        assert prompts.path is None or Path(prompts.path).is_relative_to(tmp_path)
    bare = copied.model_dump_json(by_alias=True)
    for kind in ("reward", "data"):
        bare = bare.replace(f"{tmp_path}/mine/{kind}/", "")
    assert bare == one.model_dump_json(by_alias=True)


def test_a_copy_of_the_quickstart_decides_the_same_results(tmp_path: Path) -> None:
    made = copy_recipe("quickstart", tmp_path / "mine")

    def hashes(name: str) -> dict[str, str]:
        known = external_inputs(load(name))
        rewards = {Path(use).name: content for use, content in known.rewards.items()}
        return {**rewards, **known.evaluated, "train": "".join(known.train), "model": known.base.key}

    assert hashes(str(made[0])) == hashes("quickstart")


def test_the_comments_stay(tmp_path: Path) -> None:
    made = copy_recipe("llama3", tmp_path / "mine")
    text = shipped.recipe_path("llama3").read_text("utf-8")
    assert made[0].read_text("utf-8") == text.replace("extends: gsm8k", "extends: ./gsm8k.yaml")


def test_a_folder_that_is_not_empty_is_refused_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not an empty folder \[recipe-target\]"):
        copy_recipe("quickstart", tmp_path)
    with pytest.raises(InputError, match=r"did you mean 'quickstart'\? \[recipe-not-shipped\]"):
        copy_recipe("quickstar", tmp_path / "new")
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_init_says_what_to_do_next(tmp_path: Path) -> None:
    told = posttrain("init", str(tmp_path / "mine"))
    assert told.exit_code == 0
    assert "posttrain round ./quickstart.yaml" in told.stdout


def test_env_shows_versions_and_machine_and_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "hf_secret")
    told = posttrain("env", "--json")
    found = json.loads(told.stdout)
    assert found["versions"]["torch"] and found["cpu"]["usable"] >= 1 and found["memory"]["total"] > 2**20
    assert "secret" not in told.stdout + posttrain("env").stdout
