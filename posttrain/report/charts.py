"""Chart types as plain data, with id, title and caption. Drawing is in `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posttrain.evaluation.statistics import Figure


@dataclass(frozen=True)
class Point:
    """A value at a round, or at a step; without an interval, low and high are the value."""

    at: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A curve; `reference`: what the others are compared with, rather than something that was found in each round."""

    name: str
    points: tuple[Point, ...]
    reference: bool = False


@dataclass(frozen=True)
class _Titled:
    """What every chart has. `unit`: of its axis."""

    id: str
    title: str
    caption: str
    unit: str


@dataclass(frozen=True)
class Lines(_Titled):
    """Curves with their intervals, over rounds, or whatever `over` is. `level`: where a reader compares with, such as
    no change."""

    series: tuple[Series, ...]
    level: float | None = None
    over: str = "round"

    @property
    def legend(self) -> list[str]:
        """Names of the curves; a single one that is called as the axis needs none."""
        names = [one.name for one in self.series]
        return [] if names == [self.unit] else names

    @property
    def alt(self) -> str:
        ends = [
            f"{one.name} {one.points[0].value:.3g} in {self.over} {one.points[0].at}, "
            f"{one.points[-1].value:.3g} in {self.over} {one.points[-1].at}"
            for one in self.series
        ]
        return f"Curves over {self.over}s: {'; '.join(ends)}."


@dataclass(frozen=True)
class Bars(_Titled):
    """A bar a round, in parts: `parts[name]` holds one length for each of `rounds`."""

    rounds: tuple[int, ...]
    parts: Mapping[str, Sequence[float]]

    @property
    def legend(self) -> list[str]:
        return list(self.parts)

    @property
    def alt(self) -> str:
        totals = [sum(part[at] for part in self.parts.values()) for at in range(len(self.rounds))]
        shown = ", ".join(f"round {number}: {total:.4g}" for number, total in zip(self.rounds, totals, strict=True))
        return f"Bars by round, in parts ({', '.join(self.parts)}). In all {self.unit}: {shown}."


@dataclass(frozen=True)
class Ridges(_Titled):
    """A histogram a round, one below the other. `counts[i]` is of `rounds[i]`, between `edges`."""

    rounds: tuple[int, ...]
    edges: Sequence[float]
    counts: Sequence[Sequence[int]]
    means: Sequence[float]

    @property
    def alt(self) -> str:
        shown = ", ".join(f"round {number}: {mean:.3g}" for number, mean in zip(self.rounds, self.means, strict=True))
        return f"Histograms by round, from {self.edges[0]:.3g} to {self.edges[-1]:.3g}. Means: {shown}."


@dataclass(frozen=True)
class Spreads(_Titled):
    """Values of several policies in several families, a row a family: `values[policy][family]`."""

    families: tuple[str, ...]
    values: Mapping[str, Mapping[str, Sequence[float]]]

    @property
    def legend(self) -> list[str]:
        return list(self.values)

    @property
    def alt(self) -> str:
        shown = [
            f"{policy}, {family}: {min(some):.3g} to {max(some):.3g}"
            for policy, by_family in self.values.items()
            for family, some in by_family.items()
        ]
        return f"Values by family, lowest to highest. {'; '.join(shown)}."


@dataclass(frozen=True)
class Reliability(_Titled):
    """How often somebody is right against how sure: `bins` by name, each with `confidence`, `accuracy` and `n`."""

    bins: Mapping[str, Sequence[Mapping[str, float]]]

    @property
    def legend(self) -> list[str]:
        return list(self.bins)

    @property
    def alt(self) -> str:
        shown = [
            f"{name}: " + ", ".join(f"{one['confidence']:.2f} sure, {one['accuracy']:.2f} right" for one in some)
            for name, some in self.bins.items()
        ]
        return f"Share right by how sure. {'; '.join(shown)}."


Chart = Lines | Bars | Ridges | Spreads | Reliability


def series(name: str, figures: Mapping[int, Figure | float | None], reference: bool = False) -> Series:
    """Figures, or plain numbers, by round (or step); those that are not there are left out."""
    points = []
    for number, figure in sorted(figures.items()):
        if isinstance(figure, int | float):
            points.append(Point(number, figure, figure, figure))
        elif figure and figure["value"] is not None:
            low, high = figure["ci95"] or (figure["value"], figure["value"])
            points.append(Point(number, figure["value"], low, high))
    return Series(name, tuple(points), reference)


def lines(
    id_: str,
    title: str,
    caption: str,
    unit: str,
    curves: Sequence[Series],
    level: float | None = None,
    over: str = "round",
) -> list[Lines]:
    """A chart of the curves that have a point; none, where none has."""
    drawn = tuple(one for one in curves if one.points)
    return [Lines(id_, title, caption, unit, drawn, level, over)] if drawn else []
