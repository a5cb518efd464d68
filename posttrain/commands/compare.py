"""`posttrain compare`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.commands.terminal import Terminal, json_text, say

if TYPE_CHECKING:
    from posttrain.evaluation.head_to_head import HeadToHead

_SIDE = "A run's folder (its promoted policy), a round's folder RUN/round-N, a model's folder, or a Hub id."


def compare(
    first: Annotated[str, typer.Argument(help=_SIDE)],
    second: Annotated[str, typer.Argument(help="What it is compared with: the same.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="A recipe whose held-out prompts both answer anew: a name or a path.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option("--judge", help="For the win rates: reward-model, FILE.py, or FILE.py:FUNCTION. Repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("compare.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Compare two runs, rounds or models on the same held-out prompts: every figure with its paired difference, win
    rates, and one HTML page with examples side by side.

    posttrain compare runs/quickstart/round-1 runs/quickstart

    posttrain compare ./my-model ./other-model --recipe ./mine.yaml --judge ./my_judge.py
    """
    from posttrain.api import load_recipe
    from posttrain.errors import InputError
    from posttrain.inference.comparison import compare as compared
    from posttrain.report import compare_page
    from posttrain.storage.files import write_durably

    if out.is_dir():
        raise InputError("it is a folder; name a file", file=str(out), rule="command-output")
    if not out.absolute().parent.is_dir():
        raise InputError("there is no such folder", file=str(out.absolute().parent), rule="command-output")
    watcher = None if as_json else Terminal(lambda number: "")
    found = compared(first, second, load_recipe(recipe) if recipe else None, judge or (), watcher)
    try:
        write_durably(out, compare_page.html(found))
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=str(out), rule="command-output") from error
    say(json_text(_figures(found)) if as_json else "\n".join([*_lines(found), f"\nside by side: {out}"]))


def _figures(found: HeadToHead) -> dict[str, Any]:
    """All but the examples, which are for the page."""
    return {name: value for name, value in vars(found).items() if name not in ("ahead", "behind")}


def _lines(found: HeadToHead) -> Iterator[str]:
    from posttrain.evaluation.statistics import clear, in_words

    yield f"A: {found.first}"
    yield f"B: {found.second}"
    yield f"{found.prompts} held-out prompts in common"
    yield f"\n{'':<28}{'A':>10}{'B':>10}  B - A [95 %]"
    for name, figure in (*found.figures.items(), *found.rewards.items(), *found.benchmarks.items()):
        first, second, change = (figure[side] for side in ("first", "second", "difference"))
        low, high = change["ci95"]
        told = f"{change['value']:+.3f} [{low:+.3f}, {high:+.3f}]{' *' if clear(change) else ''}"
        yield f"{name:<28}{first['value']:>10.3f}{second['value']:>10.3f}  {told}"
    if found.win_rates:
        yield f"\n{'B preferred by':<28}{'raw':>20}{'at one length':>26}{'ties':>8}"
        for name, rates in found.win_rates.items():
            raw, even = (in_words(rates[how]) for how in ("raw", "length_controlled"))
            yield f"{name:<28}{raw:>20}{even:>26}{rates['ties']:>8.2f}"
