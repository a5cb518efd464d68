"""A shipped recipe as a folder of one's own: the recipe, the recipes that it extends, and the files that they name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from posttrain import shipped
from posttrain.config.tree import Node, matches, walk
from posttrain.errors import InputError
from posttrain.recipe.load import PATHS
from posttrain.recipe.reader import read
from posttrain.recipe.schema import FILE


@dataclass
class _Copy:
    """What is to be written: texts by name, and files by where they go."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


def copy_recipe(name: str, target: Path) -> list[Path]:
    """Put the shipped recipe `name` into the folder `target`, with the reward files and prompt sets that it names; the
    copy names its own copies. Returns the files, the recipe first. A model folder stays where it is.

    Raises:
        InputError: no recipe is called so, or the folder is not empty.
    """
    source = shipped.recipe_path(name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            "exists already, and is not an empty folder",
            file=str(target),
            hint="name a new folder",
            rule="recipe-target",
        )
    copy = _Copy()
    _add_recipe(source, copy)
    try:
        for at, path in copy.files.items():
            (target / at).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / at)
        target.mkdir(parents=True, exist_ok=True)
        for at, text in copy.texts.items():
            (target / at).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=str(target), rule="recipe-target") from None
    return [target / at for at in (*copy.texts, *copy.files)]


def first_sentence(text: str) -> str:
    """A recipe's description: the first sentence of the comment at its top."""
    top = re.match(r"(?:#.*\n)*", text)
    lines = [line[1:].strip() for line in (top[0] if top else "").splitlines()]
    comment = " ".join(line for line in lines if not line.startswith("yaml-language-server"))
    return re.split(r"(?<=\.)\s", comment, maxsplit=1)[0]


def _add_recipe(source: Path, copy: _Copy) -> None:
    text, tree = source.read_text("utf-8"), read(source)
    lines = text.splitlines(keepends=True)
    # From the end, so that what is written in a line moves nothing that is still to be changed.
    for row, column, kind, name in sorted(_named(tree), reverse=True):
        here = f"./{name}.yaml" if kind == "recipes" else f"./{kind}/{name}"
        line = lines[row - 1]
        lines[row - 1] = line[: column - 1] + line[column - 1 :].replace(name, here, 1)
    copy.texts[source.name] = "".join(lines)
    for _, _, kind, name in _named(tree):
        if kind == "recipes":
            _add_recipe(shipped.recipe_path(name), copy)
        else:
            _add_file(kind, name, copy)
    copy.files[FILE] = shipped.folder("recipes") / FILE


def _add_file(kind: shipped.Kind, name: str, copy: _Copy) -> None:
    """The file, its golden cases and its card."""
    root = shipped.folder(kind)
    for beside in (name, f"{Path(name).stem}.cases.jsonl", f"{name.partition('.')[0]}.md"):
        if (root / beside).is_file():
            copy.files[f"{kind}/{beside}"] = root / beside


def _named(tree: Node) -> Iterator[tuple[int, int, shipped.Kind, str]]:
    """The shipped files that a recipe names, and recipes that it extends: line, column, kind, name."""
    for path, node in walk(tree):
        if isinstance(node.value, str) and "/" not in node.value:
            row, column = node.place.line or 0, node.place.column or 0
            if path == ("extends",):
                yield row, column, "recipes", node.value
            for pattern, kind in PATHS.items():
                if matches(pattern, path) and (shipped.folder(kind) / node.value).is_file():
                    yield row, column, kind, node.value
