"""`posttrain schema`."""

from __future__ import annotations

from posttrain.commands.terminal import say


def schema_() -> None:
    """Print the JSON schema of a recipe, for completion and checks in an editor.

    posttrain schema > recipe.schema.json

    An editor with the YAML language server reads it where a recipe begins with
    `# yaml-language-server: $schema=recipe.schema.json`; `posttrain init` puts both into its folder.
    """
    import json

    from posttrain.recipe.schema import schema

    say(json.dumps(schema(), indent=1, ensure_ascii=False))
