"""`posttrain filter`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.commands.terminal import json_text, say

if TYPE_CHECKING:
    from posttrain.filters import Filter, FilterContext
    from posttrain.recipe.recipe import Recipe


def filter_(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="JSONL (.gz too), Parquet or CSV of prompt/completion or chosen/rejected."),
    ],
    recipe: Annotated[str, typer.Option("--recipe", help="Whose `filters:` to use: a shipped name, or a path.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder, for kept.parquet and dropped.parquet.")],
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="FILE", help="An evaluation set. Default: the recipe's dev and heldout."),
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Filter a file of rows with a recipe's filters. A pair is filtered by its chosen answer.

    posttrain filter mine.jsonl --recipe my.yaml --out filtered --against test.jsonl
    """
    from posttrain.filters import Filter
    from posttrain.filters.file import filter_file
    from posttrain.recipe.load import load

    resolved = load(recipe, set_ or [], files=False)
    chosen = [one for one in resolved.filters if isinstance(one, Filter)]  # all of them
    figures = filter_file(source, chosen, _context(resolved, chosen, against), out)
    if as_json:
        say(json_text({"in": str(source), "out": str(out), **figures}))
        return
    say(table(figures))
    say(f"\nkept {figures['kept']:,} of {figures['rows']:,} rows: {out / 'kept.parquet'}")
    say(f"dropped, each with filter, reason and figure: {out / 'dropped.parquet'}")


def table(figures: Mapping[str, Any]) -> str:
    """One line per filter: rows in, rows out, reasons."""
    head = ("filter", "rows in", "rows out", "rows/s", "why")
    lines = [head, *map(_line, figures["filters"])]
    width = max(len(line[0]) for line in lines)
    shown = [f"{name:<{width}}{n:>12}{m:>12}{rate:>12}  {why}".rstrip() for name, n, m, rate, why in lines]
    for name, did in figures.get("judges", {}).items():
        counts = ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in did.items())
        shown.append(f"judged by {name}: {counts}")
    return "\n".join(shown)


def _line(entry: Mapping[str, Any]) -> tuple[str, ...]:
    reasons = [f"{number:,} {reason}" for reason, number in entry["reasons"].items()]
    if entry.get("masked"):
        found = ", ".join(f"{number:,} {kind}" for kind, number in entry["found"].items())
        reasons.append(f"{entry['masked']:,} masked ({found})")
    rate = entry["rows_per_second"]
    return (
        entry["filter"],
        f"{entry['in']:,}",
        f"{entry['out']:,}",
        "" if rate is None else f"{rate:,}",
        ", ".join(reasons),
    )


def _context(recipe: Recipe, chosen: Sequence[Filter], against: list[Path] | None) -> FilterContext:
    """The context that these filters read, and nothing else: an evaluation set on the Hub would need network."""
    from posttrain.data.load import read_prompts
    from posttrain.errors import InputError
    from posttrain.filters import FilterContext, message_text
    from posttrain.filters.file import evaluation_prompts

    prompts = [prompt for path in against or [] for prompt in evaluation_prompts(path)]
    compared = any("evaluation_prompts" in one.reads for one in chosen)
    if against and not compared:
        raise InputError(
            "--against names evaluation sets, and no filter of the recipe compares with them",
            hint="add {use: overlap} to `filters:`, or leave --against out",
            rule="command-options",
        )
    if compared and not against:
        sets = {name: getattr(recipe.prompts, name) for name in ("dev", "heldout")}
        sets |= {f"against.{index}": one for index, one in enumerate(recipe.prompts.against)}
        for name, one in sets.items():
            read = read_prompts(one, where=f"prompts.{name}")
            prompts += [message_text(prompt.messages) for prompt in read]
    return FilterContext(evaluation_prompts=prompts, special_tokens=_special_tokens(recipe), seed=recipe.seed)


def _special_tokens(recipe: Recipe) -> list[str]:
    """Special tokens of the recipe's model, if it is on this machine: no model is fetched to filter a file."""
    from posttrain import models, shipped

    name = recipe.model.path
    is_shipped = name in shipped.names("data")
    return models.special_tokens(shipped.locate("data", name) if is_shipped else Path(name))
