"""docs/failures.md lists each rule by which something is refused, and a test that shows it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `([a-z0-9-]+)` \|.*\| (\d) \| (.*) \|$", re.M)


def _in_the_code() -> set[str]:
    found = set()
    for path in (ROOT / "posttrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "rule" and isinstance(node.value, ast.Constant):
                found.add(node.value.value)
    return found - {None}


def test_the_page_lists_every_rule_once() -> None:
    listed = [name for name, _, _ in _ROW.findall((ROOT / "docs/failures.md").read_text("utf-8"))]
    assert sorted(listed) == sorted(_in_the_code())


def test_the_tests_that_show_a_rule_name_it() -> None:
    for rule, _, shown_by in _ROW.findall((ROOT / "docs/failures.md").read_text("utf-8")):
        files = re.findall(r"`(test_\w+\.py)`", shown_by)
        assert files, f"{rule}: no test is named"
        for file in files:
            (path,) = (ROOT / "tests").rglob(file)
            assert rule in path.read_text("utf-8"), f"{rule}: {file} does not name it"
