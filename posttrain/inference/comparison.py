"""Compares two policies head to head on the same held-out prompts: runs, their rounds, or models."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from posttrain.config import RewardEntry
from posttrain.data import tables
from posttrain.errors import DamagedError, InputError
from posttrain.evaluation import head_to_head
from posttrain.evaluation.head_to_head import Answers, Example, HeadToHead, Row
from posttrain.execution.progress import Watcher
from posttrain.inference.models import find, scored_answers
from posttrain.recipe.load import load as load_recipe
from posttrain.recipe.recipe import Recipe
from posttrain.report.lineage import final_round
from posttrain.report.measure import Measure
from posttrain.report.reading import Round, RunView, open_run
from posttrain.rewards import pairwise
from posttrain.rewards.combine import REWARD_MODEL, RIGHT, combine
from posttrain.rewards.panel import by_scores, preferences
from posttrain.rewards.scoring import model_rewards

REWARDS = "rewards"  # the judge that goes by what the reward functions say together
EXAMPLES = 8  # shown of each side
_COLUMNS = ["prompt_id", "tag", "prompt", "completion", "n_tokens", "finish", "columns", "rewards"]
_ROUND = re.compile(r"round-(\d+)")

Judge = Callable[[Sequence[tuple[Row, Row]]], list[float | None]]  # how far the first of each pair is preferred


@dataclass(frozen=True)
class _Played:
    """A round of a run, as one of the sides."""

    name: str
    view: RunView
    round: Round

    @property
    def policy(self) -> str:
        """Its policy's folder, whether it was promoted or not."""
        if not self.round.number:
            return str(self.view.root / (self.round.policy or ""))
        return str(self.view.root / "artifacts" / self.round.manifests["answers_heldout"]["input_keys"]["policy"])

    def answers(self) -> dict[str, Answers]:
        return self._read("heldout", "heldout.parquet", _grouped)

    def reward_model(self) -> str | None:
        """That of the run's last round that has one."""
        made = [one for one in self.view.rounds if "reward_model" in one.manifests]
        return str(self.view.artifact(made[-1], "reward_model")) if made else None

    def benchmarks(self) -> dict[str, Mapping[str, Any]]:
        """Manifests of the benchmarks that are done, by role."""
        return {role: one for role, one in self.round.manifests.items() if one["stage"] == "benchmark"}

    def questions(self, role: str) -> dict[tuple[str, str, int], float]:
        """The scores of a benchmark's questions by task and text; equal texts are numbered."""
        return self._read(role, "questions.parquet", lambda path: dict(_numbered(pq.read_table(path).to_pylist())))

    def _read(self, role: str, file: str, read: Callable[[Path], Any]) -> Any:
        found = self.view.table(self.round, role, file, read)
        if found is None:
            raise DamagedError(f"{self.name}: {self.view.missing[-1] if self.view.missing else f'{role} is not there'}")
        return found


def compare(
    first: str,
    second: str,
    recipe: Recipe | None = None,
    judges: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> HeadToHead:
    """Compares two sides: each a run's folder (its promoted policy), a round's folder in one, a model's folder, or a
    Hub id.

    Where both are of runs their held-out answers are read. Otherwise, and with `recipe`, both sides answer the held-out
    prompts of one recipe: the given one, that of the run, or the quickstart. `judges`: reward-model (that of the second
    side's run, or of the first's), or a file with a reward function or one that compares, `FILE:FUNCTION` where it has
    several; none: what the recipe's functions say together, and the reward model if there is one. All answers are read
    into memory.

    Raises:
        InputError: a side, the recipe or a judge is not right, or the two have no prompt in common.
        DamagedError: a table of a run is not whole.
        RewardError: a judge raised, or returned a value that is not finite.
        StageError: answering failed.
    """
    sides = [_played(name) for name in (first, second)]
    played = [side for side in sides if side is not None]
    reward_model = next((made for side in reversed(played) if (made := side.reward_model())), None)
    if recipe is None and len(played) == 2:
        _check_alike(*played)
        functions = played[0].round.functions()
        judged = _judges(judges, functions, reward_model)
        answers = [side.answers() for side in played]
    else:
        asked = recipe or load_recipe(str(played[0].view.root / "recipe.yaml") if played else "quickstart")
        functions = {one.name: one.weight for one in asked.functions()}
        judged = _judges(judges, functions, reward_model)
        policies = [side.policy if side else str(find(name)) for name, side in zip((first, second), sides, strict=True)]
        answers = [_answered(policy, asked, watcher) for policy in policies]
    benchmarks = _benchmarks(*played) if len(played) == 2 else {}
    return _compared((first, second), answers[0], answers[1], functions, judged, benchmarks)


def _played(name: str) -> _Played | None:
    """The round that is meant by a run's folder, or a round's folder in one; None for what is neither."""
    path = Path(name).absolute()
    numbered = _ROUND.fullmatch(path.name)
    if (path / "run.json").is_file():
        view = open_run(path)
        chosen = final_round(view.rounds)
    elif numbered and (path.parent / "run.json").is_file():
        view = open_run(path.parent)
        chosen = next((one for one in view.rounds if one.number == int(numbered[1])), None)
    else:
        return None
    if chosen is None or "heldout" not in chosen.manifests:
        raise InputError(
            "it has no held-out answers yet",
            file=name,
            hint="wait for them: posttrain status shows how far the run is; or name another round, RUN/round-N",
            rule="command-compare-no-answers",
        )
    return _Played(name, view, chosen)


def _check_alike(first: _Played, second: _Played) -> None:
    """Whether both runs were asked and scored in one way."""
    measures = [Measure.of_run(side.view, side.round) for side in (first, second)]
    if told := measures[0].scored_otherwise(measures[1]):
        how = "scored answers"
    elif told := measures[0].sampled_otherwise(measures[1]):
        how = "sampled them"
    else:
        return
    raise InputError(
        f"{first.name} and {second.name} {how} {told}",
        hint="with --recipe both answer the prompts of one recipe anew",
        rule="command-compare-unlike",
    )


def _answered(policy: str, recipe: Recipe, watcher: Watcher | None) -> dict[str, Answers]:
    with tempfile.TemporaryDirectory(prefix="posttrain-compare-") as folder:
        target = Path(folder) / "heldout.parquet"
        scored_answers(policy, recipe, target, watcher)
        return _grouped(target)


def _grouped(table: Path) -> dict[str, Answers]:
    return head_to_head.by_prompt(tables.by_prompt(table, _COLUMNS))


def _judges(names: Sequence[str], functions: Mapping[str, float], reward_model: str | None) -> dict[str, Judge]:
    """Judges by name, as `compare` is given them."""
    if not names:
        found = {REWARDS: _by_functions(functions)} if functions else {}
        return {**found, **({REWARD_MODEL: _by_model(reward_model)} if reward_model else {})}
    made: dict[str, Judge] = {}
    for name in names:
        called, judge = _judge(name, reward_model)
        if called in made:
            raise InputError(
                f"two judges are called {called}", hint="rename one of the files", rule="command-compare-judge"
            )
        made[called] = judge
    return made


def _judge(name: str, reward_model: str | None) -> tuple[str, Judge]:
    if name == REWARD_MODEL:
        if reward_model is None:
            raise InputError(
                "neither side is of a run that has trained a reward model",
                hint="name a reward file",
                rule="command-compare-no-reward-model",
            )
        return name, _by_model(reward_model)
    file, _, function = name.partition(".py:")
    file = f"{file}.py" if function else file
    if not file.endswith(".py"):
        raise InputError(
            f"--judge {name} is no Python file",
            hint="reward-model, FILE.py, or FILE.py:FUNCTION; a rubric stands in a recipe, as one of its rewards",
            rule="command-compare-judge",
        )
    use = str(Path(file).absolute()) if "/" in file or Path(file).is_file() else file  # else a shipped one
    found = pairwise.load(RewardEntry(use=use, function=function or None))
    return found.name, lambda pairs: preferences(found, pairs)


def _by_functions(weights: Mapping[str, float]) -> Judge:
    def judge(pairs: Sequence[tuple[Row, Row]]) -> list[float | None]:
        return [by_scores(pair, *(combine(row["rewards"], weights) for row in pair)) for pair in pairs]

    return judge


def _by_model(folder: str) -> Judge:
    def judge(pairs: Sequence[tuple[Row, Row]]) -> list[float | None]:
        scores = iter(model_rewards([row for pair in pairs for row in pair], folder) if pairs else ())
        return [by_scores(pair, next(scores), next(scores)) for pair in pairs]

    return judge


def _compared(
    names: tuple[str, str],
    first: Mapping[str, Answers],
    second: Mapping[str, Answers],
    functions: Mapping[str, float],
    judges: Mapping[str, Judge],
    benchmarks: Mapping[str, head_to_head.Paired],
) -> HeadToHead:
    common = [prompt for prompt in first if prompt in second]
    if not common:
        raise InputError(
            f"{names[0]} and {names[1]} have answered no held-out prompt in common",
            hint="with --recipe both answer the prompts of one recipe",
            rule="command-compare-no-common-prompt",
        )

    def right(rewards: Mapping[str, float | None]) -> float | None:
        score = combine(rewards, functions)
        return None if score is None else float(score >= RIGHT)

    pairs = {
        prompt: (new, old)
        for prompt in common
        if (old := first[prompt].greedy) is not None and (new := second[prompt].greedy) is not None
    }
    said = {name: judge(list(pairs.values())) for name, judge in judges.items()}
    preferred = {prompt: {name: said[name][at] for name in judges} for at, prompt in enumerate(pairs)}
    longer = [new["n_tokens"] - old["n_tokens"] for new, old in pairs.values()]

    def example(prompt: str) -> Example:
        new, old = pairs[prompt]
        return Example(old, new, (right(old["rewards"]), right(new["rewards"])), preferred[prompt])

    ahead, behind = head_to_head.examples(preferred, EXAMPLES)
    return HeadToHead(
        *names,
        len(common),
        *head_to_head.figures(first, second, functions, right),
        benchmarks,
        {name: head_to_head.wins(some, longer) for name, some in said.items()},
        [example(prompt) for prompt in ahead],
        [example(prompt) for prompt in behind],
    )


def _benchmarks(first: _Played, second: _Played) -> dict[str, head_to_head.Paired]:
    """By task, of the questions that both have answered, where both were asked in the same way."""
    scores: dict[str, tuple[list[float], list[float]]] = {}
    others = second.benchmarks()
    for role, one in first.benchmarks().items():
        other = others.get(role)
        if other is None or _asked(one) != _asked(other):
            continue
        before, after = first.questions(role), second.questions(role)
        for question, old in before.items():
            if question in after:
                both = scores.setdefault(question[0], ([], []))
                both[0].append(old)
                both[1].append(after[question])
    return {task: head_to_head.paired(*both) for task, both in scores.items()}


def _asked(manifest: Mapping[str, Any]) -> Any:
    return manifest["config"]["benchmark"], manifest["outside"]


def _numbered(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str, int], float]]:
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        question = row["task"], row["text"]
        seen[question] = number = seen.get(question, 0) + 1
        if row["score"] is not None:
            yield (*question, number), row["score"]
