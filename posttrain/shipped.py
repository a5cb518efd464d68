"""Paths of the shipped recipes, rewards and data; no other module builds them.

In an installed wheel they lie in `posttrain/_content/`; in a checkout beside the package. The
sibling folder counts only when `pyproject.toml` stands beside it: an installed package must never
pick up somebody else's `data` folder from site-packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from posttrain.errors import InputError, did_you_mean

Kind = Literal["recipes", "reward", "data"]

_PACKAGE = Path(__file__).resolve().parent
_ENDINGS = {"recipes": (".yaml",), "reward": (".py", ".md"), "data": (".jsonl", ".parquet", ".csv", ".jinja")}


def folder(kind: Kind) -> Path:
    """The folder that holds the shipped content of one kind."""
    installed = _PACKAGE / "_content" / kind
    if installed.is_dir() or not (_PACKAGE.parent / "pyproject.toml").is_file():
        return installed
    return _PACKAGE.parent / kind


def names(kind: Kind) -> list[str]:
    """What is shipped, sorted: recipes without `.yaml`, reward and data files with their ending, model folders."""
    found = []
    root = folder(kind)
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if path.name.startswith((".", "_")) or path.name.endswith(".cases.jsonl"):
            continue
        if path.suffix in _ENDINGS[kind] or (path / "config.json").is_file():
            found.append(path.stem if kind == "recipes" else path.name)
    return found


def recipe_path(name: str) -> Path:
    """The shipped recipe `name`, with or without `.yaml`. Raises InputError that lists near names."""
    return _path("recipes", name.removesuffix(".yaml"), ".yaml")


def locate(kind: Kind, value: str) -> Path:
    """The file or folder that a resolved recipe names: a bare name is shipped, anything else is a path. Raises
    InputError that lists near names."""
    return _path(kind, value) if "/" not in value else Path(value)


def _path(kind: Kind, name: str, ending: str = "") -> Path:
    shipped = names(kind)
    if name in shipped:
        return folder(kind) / (name + ending)
    raise InputError(
        f"nothing shipped under {kind}/ is called {name!r}{did_you_mean(name, shipped)}",
        hint=f"shipped: {', '.join(shipped) or 'nothing'}; a path of your own holds a slash, as in ./{name}{ending}",
        rule="recipe-not-shipped",
    )
