"""`posttrain init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.commands.completion import recipes
from posttrain.commands.terminal import say


def init_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or an empty one.")],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="See `posttrain recipes`.", autocompletion=recipes)
    ] = "quickstart",
) -> None:
    """Copy a shipped recipe into a folder to edit, with the rewards and prompts that it names. The copy runs as it is.

    posttrain init mine

    posttrain init mine --recipe gsm8k
    """
    from posttrain.recipe.copy import copy_recipe

    made = copy_recipe(recipe, folder)
    for path in made:
        say(path)
    recipe_file = f"./{made[0].name}"
    say(f"\nEdit {made[0]}, then:\n  cd {folder}")
    say(f"  posttrain check {recipe_file}\n  posttrain round {recipe_file} --n 2")
