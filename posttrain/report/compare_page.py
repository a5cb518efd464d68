"""Renders a comparison of two policies as one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.data.messages import text_of
from posttrain.evaluation.head_to_head import Example, HeadToHead
from posttrain.evaluation.statistics import clear
from posttrain.report.answers import changes, shortened
from posttrain.report.page import environment, style


def html(found: HeadToHead) -> str:
    """The page."""
    made = environment()
    made.filters["clear"] = clear
    shown = {"Examples where B is preferred": found.ahead, "Examples where A is preferred": found.behind}
    return made.get_template("compare.html.jinja").render(
        style=style(), found=found, shown=[(title, _prompts(prompts)) for title, prompts in shown.items()]
    )


def _prompts(shown: Sequence[Example]) -> list[dict[str, Any]]:
    """Each prompt with both answers, the second with what is new in it."""
    found = []
    for one in shown:
        texts = [shortened(text_of(row["completion"])) for row in (one.first, one.second)]
        pieces = [[("same", texts[0][0])], changes(texts[0][0], texts[1][0])]
        sides = [
            {"name": name, "right": right, "tokens": row["n_tokens"], "pieces": each, "left_out": left_out}
            for name, right, row, each, (_, left_out) in zip(
                "AB", one.right, (one.first, one.second), pieces, texts, strict=True
            )
        ]
        found.append({"prompt": one.first["prompt"], "sides": sides, "preferences": one.preferences})
    return found
