"""Writes the table of kinds in docs/instructions.md from KINDS of reward/instructions.py.

    python docs/instructions_page.py

A test holds the page against what this makes.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "instructions.md"


def page() -> str:
    """The text of docs/instructions.md with its table as the registry has it."""
    data = runpy.run_path(str(ROOT / "data" / "instructions.py"))
    lines = ["| kind | parameters | as a prompt may say it | held out |", "| --- | --- | --- | --- |"]
    for name, kind in data["KINDS"].items():
        given = kind.draw(Random(name), "Name a river.")
        phrase = kind.phrase(kind.phrasings[0], given)
        held_out = "yes" if name in data["HELD_OUT"] else ""
        lines.append(f"| `{name}` | {_parameters(given)} | {_cell(phrase)} | {held_out} |")
    table = "\n".join(lines)
    return re.sub(
        r"(?s)(<!-- kinds -->\n).*(<!-- /kinds -->)",
        lambda found: f"{found[1]}{table}\n{found[2]}",
        PAGE.read_text("utf-8"),
    )


def _parameters(given: dict[str, Any]) -> str:
    return ", ".join(f"`{name}`: {_cell(str(value))}" for name, value in given.items())


def _cell(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([*_<>\[\]|`#\\])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
