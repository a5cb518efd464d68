"""A whole recipe: YAML with line numbers, inheritance, `--set`; checked as one by `recipe.Recipe`."""
