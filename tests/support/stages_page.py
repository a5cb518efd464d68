"""The page of stages, as tables of what each writes."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGE = (ROOT / "docs" / "stages.md").read_text("utf-8")

SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE))


def columns_on_page() -> dict[str, list[str]]:
    """The columns of each file, as the page has them; `those of NAME` put in."""
    rows = re.findall(r"^\| (`\w+/.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    found: dict[str, list[str]] = {}
    for files, columns in rows:
        names: list[str] = []
        for name in re.findall(r"`(.+?)`", columns):
            before = [known for file, known in found.items() if file.endswith(f"/{name}")]
            names += before[0] if before else [name]
        found |= dict.fromkeys(re.findall(r"`(.+?)`", files), names)
    return found
