"""Imports within `posttrain/` make no circle: lazy ones and those for types alone are counted, which hide one well."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "posttrain"


def imports_of(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            found = [f"{node.module}.{each.name}" for each in node.names]
            found = [each if each in known else node.module or "" for each in found]
        else:
            continue
        yield from (each for each in found if each in known and each != name)


def graph(package: Path) -> dict[str, set[str]]:
    parts = {path: path.relative_to(package.parent).with_suffix("").parts for path in package.rglob("*.py")}
    known = {".".join(each).removesuffix(".__init__"): path for path, each in parts.items() if "_content" not in each}
    return {name: set(imports_of(name, path, known)) for name, path in known.items()}


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle, in their order; empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_circle_of_files() -> None:
    assert circle(graph(PACKAGE)) == []


def test_a_lazy_import_closes_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from posttrain import b\n")
    (tmp_path / "b.py").write_text("def f():\n    from posttrain.a import f\n")
    folder = tmp_path.rename(tmp_path.with_name("posttrain"))
    assert set(circle(graph(folder))) == {"posttrain.a", "posttrain.b"}


def test_the_root_stays_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_no_test_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.split(".")[-1].startswith("test_")], path
