"""From a recipe's name or path to a checked `Recipe`: inheritance, `--set` changes, paths made absolute."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from posttrain import shipped
from posttrain.config.model import is_template_file
from posttrain.config.problems import check
from posttrain.config.tree import Node, Path_, Place, matches, merge, places, walk
from posttrain.config.watch import SECOND
from posttrain.engines.server_dialects import find_command
from posttrain.errors import InputError, RecipeError
from posttrain.recipe.reader import override, read
from posttrain.recipe.recipe import Recipe
from posttrain.storage.regular_files import MOST_TEXT, not_regular

# Giving one on top of an inherited recipe takes the other away.
_EXCLUSIVE: dict[Path_, tuple[set[str], set[str]]] = {
    ("prompts", "*"): ({"path"}, {"dataset_name", "name", "revision", "split"}),
    ("*", "given"): ({"path"}, {"dataset_name", "name", "revision", "split"}),
    ("model",): ({"path"}, {"revision"}),
    ("engine", "server"): ({"start"}, {"url"}),
    ("reward", "*", "judge"): ({"path"}, {"url", "model"}),
}
PATHS: dict[Path_, shipped.Kind] = {
    ("model", "path"): "data",
    ("model", "chat_template"): "data",
    ("prompts", "*", "path"): "data",
    ("prompts", "train", "*", "path"): "data",
    ("*", "given", "path"): "data",
    ("*", "given", "*", "path"): "data",
    ("prompts", "against", "*", "path"): "data",
    ("filters", "*", "embed"): "data",
    ("reward", "*", "use"): "reward",
    ("evaluate", "measure", "*", "use"): "reward",
    ("watch", "judges", "*", "use"): "reward",
    ("reward", "*", "judge", "path"): "data",
    ("evaluate", "measure", "*", "judge", "path"): "data",
    ("filters", "*", "judge", "path"): "data",
    ("filters", "*", "model"): "data",
    ("filters", "*", "rubric"): "reward",
    ("quality_classifier", "labels"): "data",
    ("annotate", "*", "rubric"): "reward",
    ("annotate", "*", "judge", "path"): "data",
    ("filters", "*", "file"): "data",
    ("evaluate", "label_variants", "path"): "data",
    ("evaluate", "benchmarks", "*"): "data",
    ("evaluate", "benchmarks", "*", "task"): "data",
    ("evaluate", "benchmarks", "*", "file"): "data",
    ("evaluate", "benchmarks", "*", "file", "*"): "data",
}
_OF_THE_HARNESS = [("evaluate", "benchmarks", "*"), ("evaluate", "benchmarks", "*", "task")]  # without a slash
_RUNS = ("evaluate", "forecast", "runs", "*")  # folders, which are looked at where they are read
_MOST_PARENTS = 20
_MODELS = ("model", "judge", "embed")  # a path below one of these is a model's: a folder, or a Hub id
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")


def load(name_or_path: str, overrides: Sequence[str] = (), *, files: bool = True) -> Recipe:
    """The recipe of a shipped name or a path (with a slash or ending in .yaml), with `--set` changes on top.

    `overrides`: `KEY=VALUE` each, such as `samples.k=8`. Paths in it come out absolute, shipped names stay names.
    `files=False` does not look whether what it names is there (for a recipe of a run that was moved).

    Raises:
        RecipeError: a key or value is wrong, or what it names is not there; with file, line and column.
    """
    here = Path.cwd()
    path = _recipe_file(name_or_path, Place(name_or_path, here, has_lines=False))
    tree = _with_parents(path, _short(path), [])
    for text in overrides:
        if text.startswith("extends="):
            hint = "name the recipe itself"
            raise RecipeError("cannot be set from here", file="--set extends", hint=hint, rule="recipe-set")
        tree = merge(tree, override(text, tree, here), _EXCLUSIVE)
    assert isinstance(tree.value, dict)
    tree.value.setdefault("name", Node(path.stem, tree.place))
    check(Recipe, tree)
    _resolve(tree, files)
    return check(Recipe, tree).placed(places(tree))


def _with_parents(path: Path, shown_as: str, children: list[Path]) -> Node:
    tree = read(path, shown_as)
    assert isinstance(tree.value, dict)
    parent = tree.value.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent.value, str):
        raise parent.place.error("`extends` takes the name or path of one recipe", rule="recipe-extends")
    above = _recipe_file(parent.value, parent.place)
    lineage = [*children, path.resolve()]
    if above.resolve() in lineage:
        names = " -> ".join(each.name for each in [*lineage, above])
        raise parent.place.error(f"recipes extend one another in a circle: {names}", rule="recipe-extends")
    if len(lineage) >= _MOST_PARENTS:
        message = f"more than {_MOST_PARENTS} recipes that extend one another"
        raise parent.place.error(message, "write some of them as one", rule="recipe-extends")
    inherited = _with_parents(above, _short(above), lineage)
    assert isinstance(inherited.value, dict)
    inherited.value.pop("name", None)
    return merge(inherited, tree, _EXCLUSIVE)


def _recipe_file(name: str, place: Place) -> Path:
    """A bare name is a shipped recipe; with a slash or an ending it is a path."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = place.folder / os.path.expanduser(name)
        if os.path.exists(path):
            return path
        if "/" not in name and Path(name).stem in shipped.names("recipes"):
            hint = f"the shipped recipe is called {Path(name).stem!r}"
            raise place.error(f"no such file: {path}", hint, rule="recipe-no-such-file")
        raise place.error(f"no such recipe file: {path}", rule="recipe-no-such-file")
    try:
        return shipped.recipe_path(name)
    except InputError as error:
        beside = next((each for each in (name, f"{name}.yaml") if (place.folder / each).is_file()), None)
        hint = f"for the file here write ./{beside}" if beside else error.hint
        raise place.error(error.message, hint, rule="recipe-not-shipped") from None


def _short(path: Path) -> str:
    """As the user would write it: relative to the current folder where that is shorter."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def _resolve(tree: Node, files: bool) -> None:
    """Makes every path of the tree absolute and looks that it is there."""
    for path, node in walk(tree):
        if not isinstance(node.value, str):
            continue
        kinds: list[shipped.Kind] = [kind for pattern, kind in PATHS.items() if matches(pattern, path)]
        if path == ("engine", "server", "start", 0):
            node.value = _program(node.value, node.place, files)
        if matches(_RUNS, path):
            node.value = os.path.abspath(node.place.folder / os.path.expanduser(node.value))
        is_template = path == ("model", "chat_template")
        if is_template and not is_template_file(node.value):
            continue  # a name that the model's folder knows
        if "/" not in node.value and any(matches(pattern, path) for pattern in _OF_THE_HARNESS):
            continue  # a task of lm-evaluation-harness
        if kinds and node.value not in ("reward-model", SECOND, "tfidf"):
            is_model = not is_template and bool({*path} & {*_MODELS})
            node.value = _resolved(node.value, node.place, kinds[0], is_model=is_model, files=files)


def _program(word: str, place: Place, files: bool) -> str:
    """A program with a slash as an absolute path, from the recipe's folder; a bare name stays one."""
    if "/" in word:
        word = os.path.abspath(place.folder / os.path.expanduser(word))
    if files and find_command(word) is None:
        hint = "install it, or write the path of the one in its own environment"
        raise place.error(f"no such program: {word}", hint, rule="recipe-no-such-program")
    return word


def _resolved(value: str, place: Place, kind: shipped.Kind, *, is_model: bool, files: bool) -> str:
    path = Path(os.path.abspath(place.folder / os.path.expanduser(value)))
    if "/" not in value:
        try:
            if files:
                shipped.locate(kind, value)
            return value
        except InputError as error:
            hint = f"for the one beside the recipe write ./{value}" if os.path.exists(path) else error.hint
            raise place.error(error.message, hint, rule="recipe-not-shipped") from None
    is_there = os.path.isdir(path) if is_model else os.path.exists(path)  # no, too, where a name is too long
    if not is_there and is_model and _HUB_ID.fullmatch(value) and not value.startswith("."):
        return value
    if files and is_model and os.path.isfile(path):
        hint = f"name the folder that it is in: {_short(path.parent)}"
        raise place.error(f"{path} is a file; a model is a folder", hint, rule="recipe-no-such-file")
    if files and not is_there:
        raise place.error(f"no such {'model folder' if is_model else 'file'}: {path}", rule="recipe-no-such-file")
    if files and not is_model:
        _readable(path, place, None if kind == "data" else MOST_TEXT)
    return str(path)


def _readable(path: Path, place: Place, most: int | None) -> None:
    """A regular file, of `most` bytes at most where that is bounded."""
    kind = not_regular(path)
    if kind:
        raise place.error(f"{path} is {kind}, and only regular files are read", rule="recipe-not-regular")
    if most is not None and path.stat().st_size > most:
        message = f"{path} has more than {most // 1_000_000} MB, the most of a reward file or a rubric"
        raise place.error(message, "read large data from a file of its own", rule="recipe-file-size")
