"""`posttrain recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from posttrain.commands.terminal import json_text, say


def recipes_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the shipped recipes.

    posttrain recipes

    `posttrain init DIR --recipe NAME` copies one to edit; `posttrain round NAME` runs one as it is.
    """
    from posttrain import shipped
    from posttrain.recipe.copy import first_sentence

    found = {name: shipped.recipe_path(name) for name in shipped.names("recipes")}
    descriptions = {name: first_sentence(path.read_text("utf-8")) for name, path in found.items()}
    if as_json:
        listed = [{"name": name, "about": about, "path": str(found[name])} for name, about in descriptions.items()]
        say(json_text(listed))
        return
    width = max(map(len, descriptions))
    for name, about in descriptions.items():
        say(f"{name:<{width}}  {about}")
