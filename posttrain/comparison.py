"""Compares two policies head to head on the same held-out prompts: runs, their rounds, or models."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.config import RewardEntry
from posttrain.data import tables
from posttrain.errors import InputError
from posttrain.evaluation import head_to_head, win_rate
from posttrain.evaluation.head_to_head import Answers, Comparison, Row, Shown
from posttrain.evaluation.statistics import Figure
from posttrain.execution.progress import Watcher
from posttrain.inference import scored_answers
from posttrain.recipe.load import load as load_recipe
from posttrain.recipe.recipe import Recipe
from posttrain.report.lineage import final_round
from posttrain.report.reading import Round, RunView, open_run
from posttrain.rewards import pairwise
from posttrain.rewards.combine import REWARD_MODEL, RIGHT, combine
from posttrain.rewards.pairwise import Pairwise
from posttrain.rewards.scoring import columns_of, model_rewards, reward_values

REWARDS = "rewards"  # the judge that goes by what the reward functions say together
SHOWN = 8  # prompts at which a side is ahead
_ROUND = re.compile(r"round-(\d+)")

Judge = Callable[[Sequence[tuple[Row, Row]]], list[float | None]]  # how far the second of each pair is preferred


@dataclass(frozen=True)
class _Side:
    """One of the two as it was named, and the round of a run that it is, if it is one."""

    name: str
    view: RunView | None = None
    round: Round | None = None

    @property
    def policy(self) -> str:
        """A model's folder or Hub id."""
        if self.view is None or self.round is None:
            return self.name
        if not self.round.number:
            return str(self.view.root / (self.round.policy or ""))
        return str(self.view.root / "artifacts" / self.round.manifests["answers_heldout"]["input_keys"]["policy"])

    def recipe(self) -> Recipe | None:
        return load_recipe(str(self.view.root / "recipe.yaml")) if self.view else None

    def functions(self) -> dict[str, float] | None:
        """The weights of the reward functions that said what is right in a run."""
        if self.round is None:
            return None
        entries = map(RewardEntry.model_validate, self.round.manifests["heldout"]["config"]["rewards"])
        return {entry.name: entry.weight for entry in entries if not entry.is_reward_model}

    def answers(self) -> Path | None:
        """The table of answers of a run's round."""
        return self.view.artifact(self.round, "heldout") / "heldout.parquet" if self.view and self.round else None

    def reward_model(self) -> str | None:
        """That of the run's last round that has one."""
        if self.view is None:
            return None
        made = [one for one in self.view.rounds if "reward_model" in one.manifests]
        return str(self.view.artifact(made[-1], "reward_model")) if made else None

    def questions(self) -> dict[str, Path]:
        """The scored questions of each benchmark that is done."""
        if self.view is None or self.round is None:
            return {}
        roles = [role for role, one in self.round.manifests.items() if one["stage"] == "benchmark"]
        return {role: self.view.artifact(self.round, role) / "questions.parquet" for role in roles}


def compare(
    first: str,
    second: str,
    recipe: Recipe | None = None,
    judges: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Comparison:
    """Compares two sides: each a run's folder (its promoted policy), a round's folder in one, a model's folder, or a
    Hub id.

    Answers that runs have already are read; a model answers the held-out prompts of the run beside it, two models those
    of the quickstart. With `recipe` both sides answer its prompts anew. `judges`: reward-model (that of the second
    side's run, or of the first's), reward files, or files with a function that compares; none: what the recipe's
    functions say together, and the reward model if there is one. Whole tables are read into memory.

    Raises:
        InputError: a side, the recipe or a judge is not right, or the two have no prompt in common.
        RewardError: a judge raised, or returned a value that is not finite.
        StageError: answering failed.
    """
    sides = (_side(first), _side(second))
    if recipe is None and all(side.round for side in sides):
        functions = _same_functions(*sides)
        found = [_grouped(table) for side in sides if (table := side.answers())]
    else:
        asked = recipe or sides[0].recipe() or sides[1].recipe() or load_recipe("quickstart")
        functions = {one.name: one.weight for one in asked.functions()}
        found = [_answered(side, asked, watcher, anew=recipe is not None) for side in sides]
    judged = _judges(judges, functions, sides[1].reward_model() or sides[0].reward_model())
    return _compared(sides, found[0], found[1], functions, judged)


def _side(name: str) -> _Side:
    path = Path(name)
    numbered = _ROUND.fullmatch(path.absolute().name)
    if (path / "run.json").is_file():
        view = open_run(path)
        chosen = final_round(view.rounds)
    elif numbered and (path.absolute().parent / "run.json").is_file():
        view = open_run(path.absolute().parent)
        chosen = next((one for one in view.rounds if one.number == int(numbered[1])), None)
    else:
        return _Side(name)
    if chosen is None or "heldout" not in chosen.manifests:
        raise InputError(
            "it has no held-out answers yet",
            file=name,
            hint="wait for them: posttrain status shows how far the run is; or name another round, RUN/round-N",
            rule="command-compare-no-answers",
        )
    return _Side(name, view, chosen)


def _answered(side: _Side, recipe: Recipe, watcher: Watcher | None, *, anew: bool) -> dict[str, Answers]:
    """Its answers to the recipe's held-out prompts; those that a run has already are taken unless `anew`."""
    table = None if anew else side.answers()
    if table is not None:
        return _grouped(table)
    with tempfile.TemporaryDirectory(prefix="posttrain-compare-") as folder:
        target = Path(folder) / "heldout.parquet"
        scored_answers(side.policy, recipe, target, watcher)
        return _grouped(target)


def _grouped(table: Path) -> dict[str, Answers]:
    return head_to_head.by_prompt(tables.by_prompt(table))


def _same_functions(first: _Side, second: _Side) -> dict[str, float]:
    """The weights of the functions by which both runs scored."""
    one, other = first.functions() or {}, second.functions() or {}
    if one != other:
        raise InputError(
            f"{first.name} scored answers by {', '.join(one) or 'no function'}, {second.name} by "
            f"{', '.join(other) or 'no function'}, or by other weights",
            hint="with --recipe both answer the prompts of one recipe anew",
            rule="command-compare-other-rewards",
        )
    return one


def _judges(names: Sequence[str], functions: Mapping[str, float], reward_model: str | None) -> dict[str, Judge]:
    """Judges by name, as `compare` is given them."""
    if not names:
        found = {REWARDS: _by_functions(functions)} if functions else {}
        return {**found, **({REWARD_MODEL: _by_model(reward_model)} if reward_model else {})}
    made: dict[str, Judge] = {}
    for name in names:
        if name == REWARD_MODEL:
            if reward_model is None:
                raise InputError(
                    "neither side is of a run that has trained a reward model",
                    hint="name a reward file",
                    rule="command-compare-no-reward-model",
                )
            made[name] = _by_model(reward_model)
        else:
            entry = RewardEntry(use=str(Path(name).absolute()) if Path(name).is_file() else name)
            made[entry.name] = _by_file(pairwise.load(entry))
    return made


def _by_functions(weights: Mapping[str, float]) -> Judge:
    def judge(pairs: Sequence[tuple[Row, Row]]) -> list[float | None]:
        return [
            win_rate.preference(combine(second["rewards"], weights), combine(first["rewards"], weights))
            for first, second in pairs
        ]

    return judge


def _by_model(folder: str) -> Judge:
    def judge(pairs: Sequence[tuple[Row, Row]]) -> list[float | None]:
        scores = model_rewards([row for pair in pairs for row in pair], folder)
        return [win_rate.preference(*both) for both in zip(scores[1::2], scores[::2], strict=True)]

    return judge


def _by_file(function: Any) -> Judge:
    def judge(pairs: Sequence[tuple[Row, Row]]) -> list[float | None]:
        first, second = [one for one, _ in pairs], [other for _, other in pairs]
        if isinstance(function, Pairwise):
            prompts = [row["prompt"] for row in first]
            answers = [row["completion"] for row in second], [row["completion"] for row in first]
            return function(prompts, *answers, columns_of(first))
        said = [reward_values(rows, [function])[function.name] for rows in (second, first)]
        return [win_rate.preference(*both) for both in zip(*said, strict=True)]

    return judge


def _compared(
    sides: tuple[_Side, _Side],
    first: Mapping[str, Answers],
    second: Mapping[str, Answers],
    functions: Mapping[str, float],
    judges: Mapping[str, Judge],
) -> Comparison:
    common = [prompt for prompt in first if prompt in second]
    if not common:
        raise InputError(
            f"{sides[0].name} and {sides[1].name} have answered no held-out prompt in common",
            hint="with --recipe both answer the prompts of one recipe",
            rule="command-compare-no-common-prompt",
        )

    def right(rewards: Mapping[str, float | None]) -> float | None:
        score = combine(rewards, functions)
        return None if score is None else float(score >= RIGHT)

    pairs = {
        prompt: (one, other)
        for prompt in common
        if (one := first[prompt].greedy) is not None and (other := second[prompt].greedy) is not None
    }
    preferences = _preferences(pairs, judges)
    longer = [other["n_tokens"] - one["n_tokens"] for one, other in pairs.values()]

    def shown(prompt: str) -> Shown:
        one, other = pairs[prompt]
        return Shown(one, other, (right(one["rewards"]), right(other["rewards"])), preferences[prompt])

    ahead, behind = head_to_head.most_different(preferences, SHOWN)
    return Comparison(
        sides[0].name,
        sides[1].name,
        len(common),
        head_to_head.figures(first, second, functions, right),
        _benchmarks(sides[0].questions(), sides[1].questions()),
        {name: head_to_head.wins([preferences[prompt][name] for prompt in pairs], longer) for name in judges},
        [shown(prompt) for prompt in ahead],
        [shown(prompt) for prompt in behind],
    )


def _preferences(
    pairs: Mapping[str, tuple[Row, Row]], judges: Mapping[str, Judge]
) -> dict[str, dict[str, float | None]]:
    """By prompt and judge. Equal answers are a tie, and no judge is asked about them."""
    found: dict[str, dict[str, float | None]] = {prompt: dict.fromkeys(judges, 0.5) for prompt in pairs}
    apart = [prompt for prompt, (one, other) in pairs.items() if one["completion"] != other["completion"]]
    for name, judge in judges.items() if apart else ():
        for prompt, said in zip(apart, judge([pairs[prompt] for prompt in apart]), strict=True):
            found[prompt][name] = said
    return found


def _benchmarks(first: Mapping[str, Path], second: Mapping[str, Path]) -> dict[str, Mapping[str, Figure]]:
    """Of the questions that both sides have answered, by task."""
    scores: dict[str, tuple[list[float], list[float]]] = {}
    for role in (role for role in first if role in second):
        before = {(row["task"], row["text"]): row["score"] for row in pq.read_table(first[role]).to_pylist()}
        for row in pq.read_table(second[role]).to_pylist():
            old = before.get((row["task"], row["text"]))
            if old is not None and row["score"] is not None:
                both = scores.setdefault(row["task"], ([], []))
                both[0].append(old)
                both[1].append(row["score"])
    return {task: head_to_head.compared(*both) for task, both in scores.items()}
