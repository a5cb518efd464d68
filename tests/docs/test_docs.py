"""README.md and docs/: commands are parsed by the real command line, recipes read, code compiled, links looked up.

What a page says of one part has a test of its own beside this (`test_commands.py`, `test_data_page.py`,
`test_filters_page.py`, `test_stages_page.py`, `test_tutorial.py`); first-steps.md is what its script wrote.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ruamel.yaml import YAML

from posttrain import shipped
from posttrain.cli import app
from posttrain.recipe.load import load
from posttrain.recipe.schema import schema

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
COMMANDS = typer.main.get_group(app).commands
SCHEMA = schema()
SECTIONS = SCHEMA["properties"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    .*\n|(?<=\n)\n(?=    ))+", re.MULTILINE)
# Names that look like keys of a recipe: figures of stages, and Python.
NO_KEYS = {"reward_model.pair_accuracy", "filters.run", "reward.py"}
FILES = re.compile(r"\.(md|py|json|jsonl|parquet|yaml|html|csv|txt|log|safetensors|jinja|sqlite)$")


def blocks(text: str, *kinds: str) -> list[str]:
    return [body for kind, body in FENCED.findall(text) if kind in kinds]


def indented(text: str) -> list[str]:
    return [textwrap.dedent(found[0]) for found in INDENTED.finditer(FENCED.sub("", text))]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `posttrain …` in blocks, after any prompt, pipe and before any comment or redirection."""
    for block in [*blocks(text, "console", "bash", "sh"), *indented(text)]:
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\$ )?(?:echo .*\| )?posttrain (.*)$", line)
            if found:
                yield shlex.split(re.split(r" >>? | \| ", found[1])[0], comments=True)


def mentioned(text: str) -> Iterator[list[str]]:
    """The same of commands inside sentences, which may leave arguments out."""
    for found in re.findall(r"`posttrain ([^`]+)`", FENCED.sub("", text)):
        words = re.split(r" >>? ", re.sub(r"[\[\]…]", "", found))[0].split()
        if words and words[0] in COMMANDS:
            yield words
        else:
            assert words and (words[0].startswith("--") or words[0].isupper()), f"there is no command: {found}"


def recipe_of(words: list[str], text: str, folder: Path) -> str | None:
    """The recipe that a command reads: a shipped one, one that stands in the page, or else any."""
    if words[0] not in ("round", "check", "eval", "sample", "filter"):
        return None
    named = words[words.index("--recipe") + 1] if "--recipe" in words else words[1] if len(words) > 1 else ""
    if named in shipped.names("recipes"):
        return named
    for block in blocks(text, "yaml"):
        if block.startswith(f"# {Path(named).name}\n"):
            (folder / "mine.yaml").write_text(block, "utf-8")
            return str(folder / "mine.yaml")
    return "gsm8k"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_those_of_the_command_line_and_set_keys_that_are_there(page: str, tmp_path: Path) -> None:
    for words in commands(PAGES[page]):
        COMMANDS[words[0]].make_context(words[0], words[1:])
        settings = [words[at + 1] for at, word in enumerate(words) if word == "--set" and "…" not in words[at + 1]]
        recipe = recipe_of(words, PAGES[page], tmp_path)
        if recipe:
            load(recipe, settings, files=False)
    for words in mentioned(PAGES[page]):
        COMMANDS[words[0]].make_context(words[0], words[1:], resilient_parsing=True)


def test_a_command_that_is_not_there_is_found() -> None:
    (words,) = commands("```console\n$ posttrain round --m 2\n```\n")
    with pytest.raises(Exception, match="No such option: --m"):
        COMMANDS[words[0]].make_context(words[0], words[1:])
    assert list(commands('    echo "a" | posttrain chat x   # b\n')) == [["chat", "x"]]
    assert list(commands("    posttrain check a \\\n      --set b=c\n")) == [["check", "a", "--set", "b=c"]]


def recipes(text: str) -> list[str]:
    """Fenced ones, and indented mappings whose keys are a recipe's."""
    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True
    found = blocks(text, "yaml")
    for block in indented(text):
        if re.match(r"(?:#.*\n)*(\w+):", block) and re.findall(r"^(\w+):", block, re.MULTILINE)[0] in SECTIONS:
            assert isinstance(yaml.load(block), dict)
            found.append(block)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_recipes_and_parts_of_them_are_read(page: str, tmp_path: Path) -> None:
    for block in recipes(PAGES[page]):
        text = block.replace("{…}", '{url: "http://localhost:8000/v1", model: a-judge}')
        path = tmp_path / "mine.yaml"
        path.write_text(text if "extends:" in text else f"extends: quickstart\n{text}", "utf-8")
        load(str(path), files=False)


@pytest.mark.parametrize("page", PAGES)
def test_code_compiles_and_imports_what_is_there(page: str) -> None:
    for block in blocks(PAGES[page], "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "posttrain":
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, each.name) for each in node.names)
        if all(isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef) for node in tree.body):
            exec(compile(tree, page, "exec", dont_inherit=True), {"__name__": "page"})


@functools.cache
def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_are_there(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    text = FENCED.sub("", PAGES[page])
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
        path = folder / target if target else folder / page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page} links to {target}#{anchor}"
    for name in re.findall(r"`((?:tests|benchmarks|posttrain|recipes|reward|data|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page} names {name}"


def is_key(name: str) -> bool:
    """Whether a dotted name is one of a recipe; numbers and lists stand for their entries."""

    def below(node: Any, names: list[str]) -> bool:
        if not names:
            return True
        kinds = [node, *node.get("anyOf", []), *node.get("oneOf", []), *([node["items"]] if "items" in node else [])]
        if "$ref" in node:
            kinds.append(SCHEMA["$defs"][node["$ref"].rpartition("/")[2]])
        if names[0].isdigit():
            return any(below(kind["items"], names[1:]) for kind in kinds if "items" in kind)
        return any(
            below(kind["properties"][names[0]], names[1:]) for kind in kinds if names[0] in kind.get("properties", {})
        ) or any(below(kind, names) for kind in kinds if kind is not node)

    return below(SCHEMA, name.split("."))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "recipe.md"])
def test_dotted_keys_are_those_of_a_recipe(page: str) -> None:
    for name in re.findall(r"`(\w+(?:\.\w+)+)(?::[^`]*|=[^`]*)?`", PAGES[page]):
        if name.split(".")[0] in SECTIONS and not FILES.search(name) and name not in NO_KEYS:
            assert is_key(name), f"{page}: {name}"


def test_a_dotted_key_that_is_not_there_is_found() -> None:
    assert is_key("samples.k") and is_key("sft.learning_rate") and is_key("reward.0.weight")
    assert is_key("prompts.train.columns") and is_key("sft.mix.real.share") and is_key("model.lora.r")
    assert not is_key("samples.kk") and not is_key("sft.lr") and not is_key("sft.mix.real.parts")


def test_every_page_is_in_the_index_once() -> None:
    listed = re.findall(r"^\| \[([\w.-]+)\]", PAGES["index.md"], re.MULTILINE)
    assert sorted(listed) == sorted(set(PAGES) - {"README.md", "index.md"})


@functools.cache
def messages() -> str:
    """All texts of the code, joined; what is filled in is `…`."""
    found = []
    for path in sorted((ROOT / "posttrain").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_messages_in_troubleshooting_are_the_code_s() -> None:
    heads = re.findall(r"^### (.*)$", PAGES["troubleshooting.md"], re.MULTILINE)
    quoted = [message for head in heads for message in re.findall(r"`([^`]+)`", head)]
    assert len(quoted) >= 20
    for message in quoted:
        for part in (part.strip(" ") for part in message.split("…")):
            assert part in messages(), f"no message says {part!r}"
