"""Two policies on the same prompts: paired differences of every figure, win rates, where one is preferred. Pure.

The sides are `first` and `second`; differences and win rates are those of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.data.tables import GREEDY, SAMPLED
from posttrain.evaluation import statistics, win_rate
from posttrain.evaluation.statistics import Figure

Row = Mapping[str, Any]  # of SCORED_ANSWERS, with `rewards` parsed
Verdict = Callable[[Mapping[str, float | None]], float | None]  # of an answer's rewards: 1.0 right, 0.0 wrong
Paired = Mapping[str, Figure]  # `first`, `second`, and the `difference`, second − first


@dataclass(frozen=True)
class Example:
    """A prompt at which one side is preferred: the greedy answers, whether they are right (None: nothing says so), and
    how far each judge prefers the second, in [0, 1]."""

    first: Row
    second: Row
    right: tuple[float | None, float | None]
    preferences: Mapping[str, float | None]


@dataclass(frozen=True)
class HeadToHead:
    """A comparison: `figures` and `rewards` see `figures`; `benchmarks`: each task's first metric over its questions;
    `win_rates` by judge, see `wins`; `ahead`, `behind`: examples where the second side is preferred, and the first."""

    first: str
    second: str
    prompts: int
    figures: Mapping[str, Paired]
    rewards: Mapping[str, Paired]
    benchmarks: Mapping[str, Paired]
    win_rates: Mapping[str, Mapping[str, Any]]
    ahead: Sequence[Example]
    behind: Sequence[Example]


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
) -> tuple[dict[str, Paired], dict[str, Paired]]:
    """Of the prompts that both sides have. First the general figures: greedy and pass@K, the shares of prompts answered
    rightly, where K is the smaller number of samples; length in tokens; unfinished. Then the rewards of these
    `functions`. All but greedy are of the sampled answers."""
    k = min((len(one.sampled) for one in (*first.values(), *second.values()) if one.sampled), default=1)
    general, rewards = _Pairs(), _Pairs()
    for prompt in (prompt for prompt in first if prompt in second):
        sides = first[prompt], second[prompt]
        general.add(*(_general(side, right, k) for side in sides))
        rewards.add(*(_rewards(side, functions) for side in sides))
    return {name: paired(*both, share=name != "length") for name, both in general.found.items()}, {
        name: paired(*both) for name, both in rewards.found.items()
    }


class _Pairs:
    """Values of both sides by name, of the prompts at which both are known."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[list[float], list[float]]] = {}

    def add(self, first: Mapping[str, float | None], second: Mapping[str, float | None]) -> None:
        for name, one in first.items():
            other = second.get(name)
            if one is not None and other is not None:
                known = self.found.setdefault(name, ([], []))
                known[0].append(one)
                known[1].append(other)


def paired(first: Sequence[float], second: Sequence[float], *, share: bool = False) -> Paired:
    """The means, and the paired difference with its bootstrap interval. `share`: of values in [0, 1]."""
    mean = statistics.mean_share if share else statistics.mean
    difference = statistics.paired_difference(second, first)
    return {"first": mean(first), "second": mean(second), "difference": difference}


def _general(of: Answers, right: Verdict, k: int) -> dict[str, float | None]:
    found = {"greedy": right(of.greedy["rewards"])} if of.greedy is not None else {}
    if of.sampled:
        verdicts = [known for row in of.sampled if (known := right(row["rewards"])) is not None]
        counted = [(len(verdicts), int(sum(verdicts)))] if verdicts else []
        found |= {f"pass@{few}": statistics.pass_at(few, counted)["value"] for few in sorted({1, k})}
        found["length"] = statistics.known_mean(row["n_tokens"] for row in of.sampled)
        found["unfinished"] = statistics.known_mean(float(row["finish"] != "stop") for row in of.sampled)
    return found


def _rewards(of: Answers, functions: Collection[str]) -> dict[str, float | None]:
    return {name: statistics.known_mean(row["rewards"].get(name) for row in of.sampled) for name in functions}


def wins(preferences: Sequence[float | None], longer: Sequence[float]) -> dict[str, Any]:
    """Win rates of one side.

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


def examples(preferences: Mapping[str, Mapping[str, float | None]], most: int) -> tuple[list[str], list[str]]:
    """Prompts at which the judges together prefer the second side, and those at which they prefer the first, the
    clearest ones first; where they are as clear, in the order of the mapping. preferences: by prompt and judge."""
    means = {prompt: statistics.known_mean(said.values()) for prompt, said in preferences.items()}
    known = {prompt: value for prompt, value in means.items() if value is not None}
    ahead = sorted((prompt for prompt in known if known[prompt] > 0.5), key=lambda prompt: -known[prompt])
    behind = sorted((prompt for prompt in known if known[prompt] < 0.5), key=lambda prompt: known[prompt])
    return ahead[:most], behind[:most]
