"""The page of commands: every example runs, and what it says of commands, options and exit codes is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from posttrain import errors
from posttrain.cli import EPILOG, app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text("utf-8")
(BLOCK,) = re.findall(r"```console\n(.*?)```", PAGE, re.S)
COMMANDS = typer.main.get_group(app).commands
SMALL = {
    "word-problems.train.jsonl}": "word-problems.train.jsonl, rows: ':200'}",
    "word-problems.dev.jsonl}": "word-problems.dev.jsonl, rows: ':30'}",
    "word-problems.heldout.jsonl}": "word-problems.heldout.jsonl, rows: ':30'}",
    "max_steps: 40": "max_steps: 4",
}


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = f'posttrain() {{ "{sys.executable}" -m posttrain "$@"; }}; {line}'
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-ec", script]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_examples_run_in_their_order_in_an_empty_folder(tmp_path: Path) -> None:
    for line in BLOCK.splitlines():
        done = shell(line, tmp_path)
        assert done.returncode == 0, line + done.stdout[-2000:] + done.stderr[-2000:]
        assert done.stdout or ">" in line, line
        assert "it/s]" not in done.stderr, line  # no progress bars where nobody sees them move
        if "posttrain init" in line:  # the same recipe, so that a round takes seconds
            recipe = tmp_path / "mine" / "quickstart.yaml"
            text = recipe.read_text("utf-8")
            for old, new in SMALL.items():
                assert old in text
                text = text.replace(old, new)
            recipe.write_text(text, "utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine",
        "runs",
        "answers.parquet",
        "compare.html",
        "recipe.schema.json",
    }


def test_every_command_is_on_the_page_and_has_an_example_in_its_help() -> None:
    for name, command in COMMANDS.items():
        assert f"| `{name}" in PAGE, name
        assert name == "stage" or f"posttrain {name}" in (command.help or ""), name


def test_every_example_in_a_help_text_can_be_parsed() -> None:
    for command in COMMANDS.values():
        for line in re.findall(r"^ *(?:echo .*\| )?posttrain (.*)$", command.help or "", re.M):
            name, *arguments = line.split(" > ")[0].split()
            COMMANDS[name].make_context(name, arguments)


def test_the_exit_codes_are_those_of_the_errors() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    for code in {kind.exit_code for kind in kinds if issubclass(kind, errors.PosttrainError)}:
        assert f"\n| {code} | " in PAGE
        assert f" {code} " in EPILOG


def test_a_wrong_option_and_a_wrong_recipe_both_end_with_2(tmp_path: Path) -> None:
    assert shell("posttrain check --no-such-option", tmp_path).returncode == 2
    done = shell("posttrain check no-such-recipe", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_a_folder_that_is_no_stage_s_ends_with_2_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("none", "empty"):
        done = shell(f"posttrain stage {folder}", tmp_path)
        assert (done.returncode, done.stderr.splitlines()[0]) == (
            2,
            f"posttrain: {folder}: no stage.json is here [command-no-stage]",
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize(
    ("words", "expected"), [("posttrain ch", ["check", "chat"]), ("posttrain round qui", ["quickstart"])]
)
def test_the_shell_completes_commands_and_recipes(words: str, expected: list[str]) -> None:
    asked = {"_POSTTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    told = CliRunner().invoke(app, [], env=asked, prog_name="posttrain")
    assert sorted(told.stdout.split()) == sorted(expected)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "{'torch', 'transformers', 'trl', 'datasets', 'pyarrow', 'numpy', 'psutil'}"
    code = (
        "import sys; from typer.testing import CliRunner; from posttrain.cli import app;"
        f"CliRunner().invoke(app, ['--help']); print(sorted({heavy} & set(sys.modules)))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - started < 10  # 0.2 s on an idle machine
