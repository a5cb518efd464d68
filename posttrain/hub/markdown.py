"""Escapes text for Markdown: no text of a model or user becomes a link, HTML or a table."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]()!|~$:@])")


def plain(text: object) -> str:
    """The text on one line, as it reads: HTML and Markdown in it are escaped."""
    line = " ".join(str(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def code(text: object) -> str:
    """The text on one line as inline code, whatever backticks and bars it holds."""
    line = " ".join(str(text).split())
    return f"<code>{re.sub(_SPECIAL, lambda found: f'&#{ord(found[0])};', html.escape(line, quote=False))}</code>"


def fenced(text: str, language: str) -> str:
    """A code block that no line of the text can close."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
