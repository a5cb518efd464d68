"""Shell completion of arguments."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain import shipped


def recipes(incomplete: str) -> Iterator[tuple[str, str]]:
    """The shipped recipes that begin with what was typed, each with its description."""
    from posttrain.recipe.copy import first_sentence

    for name in shipped.names("recipes"):
        if name.startswith(incomplete):
            yield name, first_sentence(shipped.recipe_path(name).read_text("utf-8"))
