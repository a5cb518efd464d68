"""Two policies on the same prompts: paired differences of every figure, win rates, where they differ most. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.tables import GREEDY, SAMPLED
from posttrain.evaluation import statistics, win_rate
from posttrain.evaluation.statistics import Figure

Row = Mapping[str, Any]  # of SCORED_ANSWERS, with `rewards` parsed
Verdict = Callable[[Mapping[str, float | None]], float | None]  # of an answer's rewards: 1.0 right, 0.0 wrong


@dataclass(frozen=True)
class Shown:
    """A prompt at which the two sides differ: the greedy answers, whether they are right (None: nothing says so), and
    how far each judge prefers the second, in [0, 1]."""

    first: Row
    second: Row
    right: tuple[float | None, float | None]
    preferences: Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """`figures`: see `figures`; `benchmarks`: the same of each task's first metric, over its questions;
    `win_rates` of the second side, by judge: see `wins`. `ahead`: prompts at which the second side is
    preferred most; `behind`: those at which the first is."""

    first: str
    second: str
    prompts: int
    figures: Mapping[str, Mapping[str, Figure]]
    benchmarks: Mapping[str, Mapping[str, Figure]]
    win_rates: Mapping[str, Mapping[str, Any]]
    ahead: Sequence[Shown]
    behind: Sequence[Shown]


@dataclass
class Answers:
    """One side's answers to one prompt."""

    greedy: Row | None = None
    sampled: list[Row] = field(default_factory=list)


def by_prompt(groups: Iterable[Sequence[Row]]) -> dict[str, Answers]:
    """From the groups of a table of scored answers, each of one prompt and sampling setting."""
    found: dict[str, Answers] = {}
    for rows in groups:
        of = found.setdefault(rows[0]["prompt_id"], Answers())
        if rows[0]["tag"] == GREEDY:
            of.greedy = rows[0]
        elif rows[0]["tag"] == SAMPLED:
            of.sampled = list(rows)
    return found


def figures(
    first: Mapping[str, Answers], second: Mapping[str, Answers], functions: Collection[str], right: Verdict
) -> dict[str, dict[str, Figure]]:
    """By name: the mean of either side (`first`, `second`) over the prompts that have it on both, and the paired
    `difference`, second − first, with its 95 % interval.

    Names: greedy and pass@K (shares of prompts answered rightly, where K is the smaller number of samples), the reward
    `functions`, length (tokens) and unfinished; all but the first are of the sampled answers.
    """
    k = min((len(one.sampled) for one in (*first.values(), *second.values()) if one.sampled), default=1)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for prompt in (prompt for prompt in first if prompt in second):
        old, new = (_values(side[prompt], functions, right, k) for side in (first, second))
        for name, value in old.items():
            other = new.get(name)
            if value is not None and other is not None:
                known = found.setdefault(name, ([], []))
                known[0].append(value)
                known[1].append(other)
    return {name: compared(*pairs) for name, pairs in found.items()}


def compared(first: Sequence[float], second: Sequence[float]) -> dict[str, Figure]:
    """The two means, and the paired difference."""
    return {
        "first": statistics.mean(first),
        "second": statistics.mean(second),
        "difference": statistics.paired_difference(second, first),
    }


def clear(difference: Figure) -> bool:
    """Whether all of its interval is on one side of 0."""
    low, high = difference["ci95"]
    return low > 0 or high < 0


def _values(of: Answers, functions: Collection[str], right: Verdict, k: int) -> dict[str, float | None]:
    """One side's figures of one prompt; None where nothing is known."""
    found: dict[str, float | None] = {}
    if of.greedy is not None:
        found["greedy"] = right(of.greedy["rewards"])
    if of.sampled:
        verdicts = [known for row in of.sampled if (known := right(row["rewards"])) is not None]
        for few in sorted({1, k}):
            counted = [(len(verdicts), int(sum(verdicts)))] if verdicts else []
            found[f"pass@{few}"] = statistics.pass_at(few, counted)["value"]
        found |= {name: statistics.known_mean(row["rewards"].get(name) for row in of.sampled) for name in functions}
        found["length"] = statistics.known_mean(row["n_tokens"] for row in of.sampled)
        found["unfinished"] = statistics.known_mean(float(row["finish"] != "stop") for row in of.sampled)
    return found


def wins(preferences: Sequence[float | None], longer: Sequence[float]) -> dict[str, Any]:
    """Win rates of the second side.

    preferences: for each prompt how far its answer is preferred, in [0, 1]; None: nobody said. longer: by how many
    tokens it is the longer one.

    Returns `raw`, `length_controlled` and the share of `ties`.
    """
    known = [(one, by) for one, by in zip(preferences, longer, strict=True) if one is not None]
    said = [one for one, _ in known]
    return {
        "raw": win_rate.win_rate(said),
        "length_controlled": win_rate.length_controlled(said, [by for _, by in known]),
        "ties": said.count(0.5) / max(len(said), 1),
    }


def most_different(preferences: Mapping[str, Mapping[str, float | None]], shown: int) -> tuple[list[str], list[str]]:
    """The prompts at which judges prefer the second side most, and those at which they prefer the first.

    preferences: by prompt and judge. Judges count alike; where they say the same of several prompts the order of the
    mapping decides.
    """
    means = {prompt: statistics.known_mean(said.values()) for prompt, said in preferences.items()}
    known = {prompt: value for prompt, value in means.items() if value is not None}
    ahead = sorted((prompt for prompt in known if known[prompt] > 0.5), key=lambda prompt: -known[prompt])
    behind = sorted((prompt for prompt in known if known[prompt] < 0.5), key=lambda prompt: known[prompt])
    return ahead[:shown], behind[:shown]
