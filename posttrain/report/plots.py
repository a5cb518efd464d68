"""Charts as SVG text to stand inside a page: colours are the page's variables, ids are the chart's own.

The same chart gives the same text: `svg.hashsalt` is set, and no date is written.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from posttrain.report.charts import Bars, Chart, Lines, Reliability, Ridges, Spreads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = 8  # of series; then they come again
WIDTH = 5.4  # inches of 72 points: about as many pixels as a phone has, so that text is not shrunk there
# Stand-ins, replaced by what the page's style sheet defines.
_INK, _GRID = "#010101", "#020202"
_SERIES = [f"#0a0b{at:02x}" for at in range(COLOURS)]
_MARKS = ["o", "s", "^", "D", "v", "P", "X", "*"]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, and in the page's font
    "svg.hashsalt": "posttrain",
    "text.parse_math": False,  # names may hold a dollar sign
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


def draw(chart: Chart) -> str:
    """An `<svg>` element."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, _height(chart)))
        axes = figure.add_subplot()
        match chart:
            case Lines():
                _lines(axes, chart)
            case Bars():
                _bars(axes, chart)
            case Ridges():
                _ridges(axes, chart)
            case Spreads():
                _spreads(axes, chart)
            case Reliability():
                _reliability(axes, chart)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05, metadata=nothing)
    return _embeddable(text.getvalue(), chart)


def _height(chart: Chart) -> float:
    match chart:
        case Lines() | Reliability():
            return 2.9 + 0.2 * _legend_rows(chart.legend)
        case Bars():
            return 0.9 + 0.32 * len(chart.rounds) + 0.2 * _legend_rows(chart.legend)
        case Ridges():
            return 0.9 + 0.42 * len(chart.rounds)
        case Spreads():
            return 0.9 + 0.6 * len(chart.families) + 0.2 * _legend_rows(chart.legend)


def _columns(names: list[str]) -> int:
    longest = max((len(name) for name in names), default=0)
    return 3 if longest <= 16 else 2 if longest <= 28 else 1


def _legend_rows(names: list[str]) -> int:
    return -(-len(names) // _columns(names))


def _legend(axes: Axes, names: list[str]) -> None:
    if names:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=_columns(names),
            columnspacing=1.2,
            handlelength=1.6,
            borderaxespad=0.2,
        )


def _lines(axes: Axes, chart: Lines) -> None:
    for at, one in enumerate(chart.series):
        colour = _SERIES[at % COLOURS]
        x = [point.at for point in one.points]
        low, high = [point.low for point in one.points], [point.high for point in one.points]
        if low != high:
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        style, mark = ("--", "") if one.reference else ("-", _MARKS[at % len(_MARKS)])
        axes.plot(x, [point.value for point in one.points], style, marker=mark, color=colour, label=one.name)
        if len(x) == 1 and low != high:
            axes.vlines(x, low, high, color=colour, linewidth=1.2)
    if chart.level is not None:
        axes.axhline(chart.level, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    numbers = sorted({point.at for one in chart.series for point in one.points})
    axes.set_xticks(_ticks(numbers))
    axes.set_xlabel(chart.over)
    axes.set_ylabel(chart.unit)
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(axes, chart.legend)


def _ticks(numbers: list[int]) -> list[int]:
    """At most a dozen of them, evenly apart."""
    step = -(-len(numbers) // 12)
    return numbers[::step]


def _bars(axes: Axes, chart: Bars) -> None:
    rows = list(range(len(chart.rounds)))
    start = [0.0] * len(rows)
    for at, (name, lengths) in enumerate(chart.parts.items()):
        axes.barh(rows, lengths, left=start, height=0.7, color=_SERIES[at % COLOURS], label=name)
        start = [begin + length for begin, length in zip(start, lengths, strict=True)]
    _rounds_downwards(axes, chart)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(axes, chart.legend)


def _ridges(axes: Axes, chart: Ridges) -> None:
    for row, counts in enumerate(chart.counts):
        top = max(counts) or 1
        heights = [row - 0.85 * count / top for count in counts]
        axes.stairs(heights, list(chart.edges), baseline=row, fill=True, color=_SERIES[0], alpha=0.75)
        axes.axhline(row, color=_GRID, linewidth=0.6)
        axes.vlines(chart.means[row], row, row - 0.85, color=_SERIES[1], linewidth=1.6)
    _rounds_downwards(axes, chart)
    axes.spines["left"].set_visible(False)


def _spreads(axes: Axes, chart: Spreads) -> None:
    """A line from the lowest to the highest of each family, a mark for each value, a tall one for their mean."""
    for at, (policy, by_family) in enumerate(chart.values.items()):
        colour = _SERIES[at % COLOURS]
        for row, family in enumerate(chart.families):
            some = by_family.get(family)
            if not some:
                continue
            y = row + 0.4 * ((at + 0.5) / len(chart.values) - 0.5)
            axes.hlines(y, min(some), max(some), color=colour, linewidth=1.2)
            axes.plot(some, [y] * len(some), _MARKS[at % len(_MARKS)], color=colour, label="" if row else policy)
            axes.vlines(sum(some) / len(some), y - 0.12, y + 0.12, color=colour, linewidth=2.4)
    axes.set_yticks(range(len(chart.families)), chart.families)
    axes.invert_yaxis()
    axes.set_xlabel(chart.unit)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(axes, chart.legend)


def _reliability(axes: Axes, chart: Reliability) -> None:
    """A mark for each bin, the larger the more pairs it has; on the broken line who is as often right as sure."""
    least = min((one["confidence"] for some in chart.bins.values() for one in some), default=0.5)
    axes.plot([least, 1], [least, 1], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for at, (name, some) in enumerate(chart.bins.items()):
        x, y = [one["confidence"] for one in some], [one["accuracy"] for one in some]
        most = max((one["n"] for one in some), default=1)
        axes.plot(x, y, color=_SERIES[at % COLOURS], marker=_MARKS[at % len(_MARKS)], label=name)
        axes.scatter(x, y, s=[20 + 100 * one["n"] / most for one in some], color=_SERIES[at % COLOURS], alpha=0.35)
    axes.set_xlabel("how sure")
    axes.set_ylabel(chart.unit)
    axes.grid(linewidth=0.6)
    axes.set_axisbelow(True)
    _legend(axes, chart.legend)


def _rounds_downwards(axes: Axes, chart: Bars | Ridges) -> None:
    axes.set_yticks(range(len(chart.rounds)), [f"round {number}" for number in chart.rounds])
    axes.invert_yaxis()
    axes.set_xlabel(chart.unit)
    axes.tick_params(axis="y", length=0)


def _embeddable(svg: str, chart: Chart) -> str:
    """The element alone, with colours of the page and ids that no other chart on it has."""
    svg = svg[svg.index("<svg") :]
    for stand_in, variable in [(_INK, "currentColor"), (_GRID, "var(--grid)")]:
        svg = svg.replace(stand_in, variable)
    for at, stand_in in enumerate(_SERIES):
        svg = svg.replace(stand_in, f"var(--series-{at})")
    pointed_at = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in pointed_at else "", svg)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\1{chart.id}.", svg)
    svg = re.sub(r"font-family: [^;\"]+;? ?", "", svg)
    # A style element would hold for all of the page.
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    size = re.search(r'viewBox="[^"]+"', head)
    assert size
    return f'<svg {size[0]} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
