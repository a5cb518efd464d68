"""Monitors reward over-optimisation: compares the round's held-out answers with those of the last promoted policy and
of the base.

Reward models of different rounds do not share a scale, so the answers of all three are scored again: by the round's own
reward model (the proxy, by which answers are chosen) and by a second one, trained on other pairs and used for nothing
else. If the proxy rises while the second model or the accuracy falls, the policy exploits its reward model (Gao et al.
2023, arXiv 2210.10760). No stage reads the result.

Rewards, lengths and accuracy are means over the sampled answers of a prompt. Win rates compare greedy answers: one
comparison per prompt, so that comparisons are independent and expensive judges are called once per prompt.

The judges also compare the answers of the round's held-out labelled pairs, which says how far to trust them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.config import Judge, RewardEntry
from posttrain.config.watch import SECOND
from posttrain.data.tables import GREEDY, SAMPLED, SCORED_ANSWERS, by_prompt
from posttrain.errors import RewardError, StageError
from posttrain.evaluation import statistics
from posttrain.evaluation.calibration import agreement
from posttrain.evaluation.compare import BASE, OTHERS, POLICY, summary
from posttrain.job import Job
from posttrain.rewards import RewardFunction, Runtime, pairwise
from posttrain.rewards.combine import REWARD_MODEL, RIGHT, combine
from posttrain.rewards.pairwise import Pairwise
from posttrain.rewards.panel import by_scores, preferences
from posttrain.rewards.scoring import model_rewards, reward_values, scoring_dtype, slices
from posttrain.storage.pieces import cut, even
from posttrain.storage.shards import processes, run_shards

_ROWS, _PAIRS = 4096, 64  # written together; judged together, and kept
# A prompt's answers by one setting: what is known of each side's, and who is preferred, by the other side and judge.
COMPARED = pa.schema(
    [("prompt_id", pa.string()), ("tag", pa.string()), ("figures", pa.string()), ("preferences", pa.string())]
)
Loaded = tuple[RewardFunction | Pairwise, ...]  # the judges that are no reward model


@dataclass(frozen=True)
class Panel:
    """Scorers and judges. `models`: {reward name: folder}, which compute in `dtype`; `weights`: of the reward functions
    for accuracy.

    `functions`: reward functions among `judges` whose scores are not in the tables yet.
    """

    models: Mapping[str, str]
    dtype: str
    weights: Mapping[str, float]
    judges: tuple[str, ...]
    functions: tuple[RewardFunction, ...]
    pairwise: tuple[Pairwise, ...]


def run(job: Job) -> dict[str, Any]:
    """Inputs: policy, previous, base (held-out answers), watch_model, reward_model and preferences (the round's;
    optional). Config: judges, rewards. Writes compared.parquet; returns figures, changes, win_rates, warnings and
    judges: see docs/watch.md.

    Raises:
        RewardError: a function raised, or returned a value that is not finite.
        StageError: a reward model gave a score that is not finite.
    """
    sides = [side for side in (POLICY, *OTHERS) if side != BASE or job.inputs[BASE] != job.inputs["previous"]]
    runtime = Runtime(job.runtime.get("reward_minutes"))
    judges = tuple(pairwise.load(each.entry, runtime) for each in job.sections("judges", Judge) if not each.is_model)
    panel = _panel(job, judges)
    pooled, labelled = job.scratch / "pooled.parquet", _labelled(job) if judges else []
    total = _pool({side: job.inputs[side] / "heldout.parquet" for side in sides}, pooled)
    count = job.counter(total + len(labelled), "comparisons")
    agreements = _agreements(job, labelled, judges, count)
    work = functools.partial(_compared, pooled, panel)
    paths = run_shards(work, slices(pooled), job.scratch / "shards", processes(job.workers), count, part=job.part)
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    pq.write_table(table, job.out / "compared.parquet", compression="zstd")
    result = summary(table.to_pylist(), panel.judges, job.seed)
    for found in (result["figures"], result["changes"], result["win_rates"]):
        found.setdefault(BASE, found["previous"])  # in the first round they are one
    return {**result, "judges": agreements}


def _panel(job: Job, loaded: Loaded) -> Panel:
    entries = job.sections("judges", Judge)
    weights = {entry.name: entry.weight for entry in job.sections("rewards", RewardEntry)}
    models = {SECOND: str(job.inputs["watch_model"])}
    if "reward_model" in job.inputs:
        models[REWARD_MODEL] = str(job.inputs["reward_model"])
    return Panel(
        models,
        scoring_dtype(job),
        weights,
        tuple(entry.name for entry in entries),
        tuple(one for one in loaded if not isinstance(one, Pairwise) and one.name not in weights),
        tuple(one for one in loaded if isinstance(one, Pairwise)),
    )


def _pool(tables: Mapping[str, Path], target: Path) -> int:
    """Writes the greedy and sampled answers of all sides into one table, grouped by prompt; `tag`: SIDE TAG.

    Returns the number of comparisons: one per prompt and tag.
    """
    total = 0
    with pq.ParquetWriter(target, SCORED_ANSWERS, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for groups in zip_longest(*(_answers(path) for path in tables.values()), fillvalue=()):
            if len({(group[0]["prompt_id"], group[0]["tag"]) if group else None for group in groups}) > 1:
                raise StageError("watch: the policies did not answer the same held-out prompts")
            for side, group in zip(tables, groups, strict=True):
                rows += [{**row, "tag": f"{side} {row['tag']}", "rewards": json.dumps(row["rewards"])} for row in group]
            total += 1
            if len(rows) >= _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema=SCORED_ANSWERS))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, schema=SCORED_ANSWERS))
    return total


def _answers(table: Path) -> Iterator[list[dict[str, Any]]]:
    return (rows for rows in by_prompt(table) if rows[0]["tag"] in (GREEDY, SAMPLED))


def _compared(pooled: Path, panel: Panel, rows_of: tuple[int, int]) -> pa.Table:
    """Rows of COMPARED, one per prompt and sampling setting, from the pooled answers from start to stop."""
    start, stop = rows_of
    rows = pq.read_table(pooled).slice(start, stop - start).to_pylist()
    scores = [json.loads(row["rewards"]) for row in rows]
    for name, values in _new_scores(rows, panel).items():
        for score, value in zip(scores, values, strict=True):
            score[name] = value
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row, score in zip(rows, scores, strict=True):
        side, tag = row["tag"].split(" ", 1)
        of_prompt = groups.setdefault((row["prompt_id"], tag), {})
        of_prompt.setdefault(side, []).append({**row, "rewards": score})
    greedy = [sides for (_, tag), sides in groups.items() if tag == GREEDY]
    verdicts = iter(_verdicts(greedy, panel))
    return pa.Table.from_pylist(
        [
            {
                "prompt_id": prompt,
                "tag": tag,
                "figures": json.dumps({side: _figures(answers, panel.weights) for side, answers in sides.items()}),
                "preferences": json.dumps(next(verdicts) if tag == GREEDY else {}),
            }
            for (prompt, tag), sides in groups.items()
        ],
        schema=COMPARED,
    )


def _new_scores(rows: Sequence[Mapping[str, Any]], panel: Panel) -> dict[str, Sequence[float | None]]:
    """Scores of each row by the reward models, and by the functions whose scores are not in the table."""
    said: dict[str, Sequence[float | None]] = {}
    for name, folder in panel.models.items():
        with _named(name):
            said[name] = model_rewards(rows, folder, panel.dtype)
    for function in panel.functions:
        with _named(function.name):
            said |= reward_values(rows, [function])
    return said


def _figures(answers: Sequence[Mapping[str, Any]], weights: Mapping[str, float]) -> dict[str, float | None]:
    """Means over one side's answers to a prompt; None where no answer has a score."""
    verdicts = [combine(answer["rewards"], weights) for answer in answers]
    values: dict[str, list[float | None]] = {
        "proxy_reward": [answer["rewards"].get(REWARD_MODEL) for answer in answers],
        "heldout_reward": [answer["rewards"][SECOND] for answer in answers],
        "length": [answer["n_tokens"] for answer in answers],
        "accuracy": [None if verdict is None else float(verdict >= RIGHT) for verdict in verdicts],
    }
    return {name: statistics.known_mean(some) for name, some in values.items()}


def _verdicts(
    prompts: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]], panel: Panel
) -> list[dict[str, dict[str, float | None]]]:
    """For each prompt, by other side and judge: the preference for the round's greedy answer, in [0, 1]."""
    found: list[dict[str, dict[str, float | None]]] = [
        {
            other: {judge: _by_scores(sides[POLICY][0], sides[other][0], judge) for judge in panel.judges}
            for other in OTHERS
            if other in sides
        }
        for sides in prompts
    ]
    for judge in panel.pairwise:
        for other in found[0] if found else ():
            with _named(judge.name):
                said = preferences(judge, [(sides[POLICY][0], sides[other][0]) for sides in prompts])
            for verdicts, value in zip(found, said, strict=True):
                verdicts[other][judge.name] = value
    return found


def _by_scores(mine: Mapping[str, Any], its: Mapping[str, Any], judge: str) -> float | None:
    return by_scores((mine, its), mine["rewards"].get(judge), its["rewards"].get(judge))


def _labelled(job: Job) -> list[dict[str, Any]]:
    """The round's pairs that no reward model is trained on."""
    if "preferences" not in job.inputs:
        return []
    table = job.inputs["preferences"] / "pairs.parquet"
    return pq.read_table(table, filters=[("split", "==", "heldout")]).to_pylist()


def _agreements(
    job: Job, labelled: Sequence[dict[str, Any]], judges: Loaded, count: Callable[[int], None]
) -> dict[str, Any]:
    """How far each judge agrees with the labels, by its name: see `agreement`. Pairs without its verdict are left
    out."""
    work, parts = functools.partial(_judged, judges), cut(labelled, even(len(labelled), _PAIRS))
    paths = run_shards(work, parts, job.scratch / "judged", processes(job.workers), count, part=job.part)
    tables = [pq.read_table(path) for path in paths]

    def verdicts(judge: str) -> list[float]:
        return [one for table in tables for one in table[judge].to_pylist() if one is not None]

    return {judge.name: agreement(verdicts(judge.name), isinstance(judge, Pairwise)) for judge in judges}


def _judged(judges: Loaded, pairs: Sequence[Mapping[str, Any]]) -> pa.Table:
    """For each pair, a column for each judge: how far it prefers the chosen answer, or null."""
    return pa.table({judge.name: pa.array(_of_chosen(judge, pairs), pa.float64()) for judge in judges})


def _of_chosen(judge: RewardFunction | Pairwise, pairs: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """See `preferences`. None also where a pair lacks a column that the judge needs, as pairs given by people may."""
    fit = [_finds_columns(judge, list(json.loads(pair["columns"]))) for pair in pairs]
    answers = [
        ({**pair, "completion": pair["chosen"]}, {**pair, "completion": pair["rejected"]})
        for pair, fits in zip(pairs, fit, strict=True)
        if fits
    ]
    with _named(judge.name):
        said = iter(preferences(judge, answers) if answers else ())
    return [next(said) if fits else None for fits in fit]


def _finds_columns(judge: RewardFunction | Pairwise, columns: Sequence[str]) -> bool:
    try:
        judge.check_columns(columns)
    except RewardError:
        return False
    return True


@contextlib.contextmanager
def _named(judge: str) -> Iterator[None]:
    """Adds the names of the stage and the judge to errors."""
    try:
        yield
    except StageError as error:
        raise type(error)(f"watch: judge {judge}: {error}") from error
    except RewardError as error:
        raise error.replaced(message=f"watch: judge {judge}: {error.message}") from error
