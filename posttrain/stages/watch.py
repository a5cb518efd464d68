"""Monitors reward over-optimisation: compares the round's held-out answers with those of the last promoted policy and
of the base.

Reward models of different rounds do not share a scale, so the answers of all three are scored again: by the round's own
reward model (the proxy, by which answers are chosen) and by a second one, trained on other pairs and used for nothing
else. If the proxy rises while the second model or the accuracy falls, the policy exploits its reward model (Gao et al.
2023, arXiv 2210.10760). No stage reads the result.

Rewards, lengths and accuracy are means over the sampled answers of a prompt. Win rates compare greedy answers: one
comparison per prompt, so that comparisons are independent and expensive judges are called once per prompt.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
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
from posttrain.evaluation.compare import BASE, OTHERS, POLICY, summary
from posttrain.job import Job
from posttrain.rewards import RewardFunction, Runtime, pairwise
from posttrain.rewards.combine import REWARD_MODEL, RIGHT, combine
from posttrain.rewards.pairwise import Pairwise
from posttrain.rewards.panel import by_scores, preferences
from posttrain.rewards.scoring import model_rewards, reward_values, scoring_dtype, slices
from posttrain.storage.shards import processes, run_shards

_ROWS = 4096
# A prompt's answers by one setting: what is known of each side's, and who is preferred, by the other side and judge.
COMPARED = pa.schema(
    [("prompt_id", pa.string()), ("tag", pa.string()), ("figures", pa.string()), ("preferences", pa.string())]
)


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
    """Inputs: policy, previous, base (held-out answers), watch_model, reward_model (optional). Config: judges, rewards.
    Writes compared.parquet; returns figures, changes, win_rates and warnings: see docs/watch.md.

    Raises:
        RewardError: a function raised, or returned a value that is not finite.
        StageError: a reward model gave a score that is not finite.
    """
    sides = [side for side in (POLICY, *OTHERS) if side != BASE or job.inputs[BASE] != job.inputs["previous"]]
    panel = _panel(job)
    pooled = job.scratch / "pooled.parquet"
    count = job.counter(_pool({side: job.inputs[side] / "heldout.parquet" for side in sides}, pooled), "comparisons")
    work = functools.partial(_compared, pooled, panel)
    paths = run_shards(work, slices(pooled), job.scratch / "shards", processes(job.workers), count, part=job.part)
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    pq.write_table(table, job.out / "compared.parquet", compression="zstd")
    result = summary(table.to_pylist(), panel.judges, job.seed)
    for found in (result["figures"], result["changes"], result["win_rates"]):
        found.setdefault(BASE, found["previous"])  # in the first round they are one
    return result


def _panel(job: Job) -> Panel:
    entries = job.sections("judges", Judge)
    runtime = Runtime(job.runtime.get("reward_minutes"))
    loaded = [pairwise.load(each.entry, runtime) for each in entries if not each.is_model]
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


@contextlib.contextmanager
def _named(judge: str) -> Iterator[None]:
    """Adds the names of the stage and the judge to errors."""
    try:
        yield
    except StageError as error:
        raise type(error)(f"watch: judge {judge}: {error}") from error
    except RewardError as error:
        raise error.replaced(message=f"watch: judge {judge}: {error.message}") from error
