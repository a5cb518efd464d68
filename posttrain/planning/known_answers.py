"""The answers of a probe, sampled and scored once: every stage that samples reads them, and a stage that would have too
few rows reads what is made of them.

Files in the run's folder say which they are, since each stage runs in a process of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from posttrain.stages.registry import STAGES
from posttrain.storage import store
from posttrain.storage.files import read_json, write_durably
from posttrain.system import versions

HELDOUT = 4  # prompts; dev ones are scored by the same code, and measured
FEW = "few-prompts"  # the folder of the prompts that are evaluated on, below the run's
_POOL = "pool"  # names the artifact with the answers that were sampled
STAND_IN = "stand-in"  # the folder of rows made from them
MADE = {"kept": "kept", "pairs": "pairs", "preferences_1": "pairs"}  # the tables in it, by the roles that they have
SCORED = "scored_samples"  # the role of the scored samples, for `pairs`


def write_few(prompts: Path, root: Path, dev: int) -> None:
    """Writes the probe's evaluation prompts, spread over each set, at most `dev` of dev."""
    import pyarrow.parquet as pq

    folder = root / FEW
    folder.mkdir(exist_ok=True)
    for name, wanted in {"dev": dev, "heldout": HELDOUT}.items():
        table = pq.read_table(prompts / f"{name}.parquet")
        few = table.take(list(range(0, table.num_rows, max(1, table.num_rows // wanted)))[:wanted])
        pq.write_table(few, folder / f"{name}.parquet")


def keep_pool(root: Path, answers: Path, rows: int) -> None:
    """Lets the stages that follow read these answers, the only ones that are sampled, and what is made of them: so many
    rows, those nearest to the mean length, for trainings that would have fewer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from posttrain.data.pairs import pair_row
    from posttrain.data.tables import PAIRS

    write_durably(root / _POOL, str(answers))
    table = pq.read_table(answers / "answers.parquet")
    folder = root / STAND_IN
    folder.mkdir()
    made = table.to_pylist()
    mean = sum(row["n_tokens"] for row in made) / len(made)
    kept = sorted(made, key=lambda row: abs(row["n_tokens"] - mean))[:rows]
    scored = [{**row, "score": 1.0} for row in kept]
    pq.write_table(
        pa.Table.from_pylist(scored, table.schema.append(pa.field("score", pa.float64()))), folder / "kept.parquet"
    )
    couples = [couple for some in _by_prompt(made).values() for couple in zip(some[::2], some[1::2], strict=False)]
    couples.sort(key=lambda couple: abs(couple[0]["n_tokens"] + couple[1]["n_tokens"] - 2 * mean))
    pairs = [
        {**pair_row({**one, "score": 1.0}, {**other, "score": 0.0}, "pairs", "better"), "split": "train"}
        for one, other in couples[:rows]
    ]
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), folder / "pairs.parquet")


def change(stage: dict[str, Any], root: Path) -> None:
    """Gives a stage few evaluation prompts; the training prompts whose answers are known; and where a training has too
    few rows, those of `keep_pool`."""
    import pyarrow.parquet as pq

    config, inputs = stage["config"], stage["inputs"]
    if config.get("set") in ("dev", "heldout"):
        inputs["prompts"] = FEW
        config["further"] = []  # of the base alone, and no other work
    pool = _pool(root)
    if pool is None:
        return
    where = config.get("where") or config.get("preferences", {}).get("where")
    if "take" in config and not where:
        config["take"] = {**read_json(pool / store.MANIFEST)["config"]["take"], "count": config["take"]["count"]}
    if not STAGES[stage["stage"]].trained:
        return
    section = config[stage["stage"]]
    for role, name in MADE.items():
        if role in inputs:
            rows = pq.read_metadata(root / inputs[role] / f"{name}.parquet").num_rows
            if rows < section["max_steps"] * section["batch"]:
                inputs[role] = STAND_IN


def _pool(root: Path) -> Path | None:
    """The artifact with the answers that were sampled; None before that."""
    path = root / _POOL
    return Path(path.read_text("utf-8")) if path.is_file() else None


def _by_prompt(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["prompt_id"], []).append(row)
    return found


def answer_again(folder: Path, stage: Mapping[str, Any], root: Path) -> bool:
    """Publishes known answers as those of this stage, evaluation prompts with those to others. False where answers to
    its prompts are not known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from posttrain.data.tables import ANSWERS
    from posttrain.execution.launcher import job_of
    from posttrain.stages.answers import prompts_of, samplings

    pool = _pool(root)
    if pool is None:
        return False
    job = job_of(stage, folder, 1)
    prompts, known = prompts_of(job), _by_prompt(pq.read_table(pool / "answers.parquet").to_pylist())
    if stage["config"]["set"] == "train" and not all(prompt["id"] in known for prompt in prompts):
        return False
    others, made = cycle(known.values()), list[dict[str, Any]]()
    for sampling in samplings(job):
        for prompt in prompts:
            rows = known.get(prompt["id"]) or next(others)
            start = len(rows) // 2 if sampling.tag == "previous" else 0  # other answers than the policy's
            own = {"prompt_id": prompt["id"], "prompt": prompt["prompt"], "columns": prompt["columns"]}
            for (tag, index), row in zip(sampling.named, islice(cycle(rows), start, None), strict=False):
                made.append({**row, **own, "tag": tag, "sample_index": index})
    pq.write_table(pa.Table.from_pylist(made, schema=ANSWERS), folder / "out" / "answers.parquet")
    _publish(folder, stage, root, {"prompts": len(prompts), "completions": len(made)})
    return True


def stand_in(folder: Path, stage: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Publishes the rows of `keep_pool` for a stage that kept none, so that what follows is measured. Raises the error
    that it had where there are none for it."""
    name = {"filters": "kept", "preferences": "pairs", "pairs": "pairs"}.get(stage["stage"])
    pool = _pool(root)
    if name is None or pool is None:
        raise
    prompts = read_json(pool / store.MANIFEST)["metrics"]["prompts"]
    shutil.rmtree(folder / "out")
    (folder / "out").mkdir()
    shutil.copy(root / STAND_IN / f"{name}.parquet", folder / "out")
    metrics = {"prompts": prompts, "rows": prompts, "kept": 0, "pairs": 0}
    _publish(folder, stage, root, metrics)
    return metrics


def _publish(folder: Path, stage: Mapping[str, Any], root: Path, metrics: Mapping[str, Any]) -> None:
    described = {name: stage[name] for name in ("stage", "key", "input_keys", "outside", "config")}
    manifest = {**described, "versions": versions(), "seconds": 0.0, "attempts": [], "metrics": metrics}
    store.publish(folder, root / "artifacts", manifest)


def score_again(folder: Path, stage: Mapping[str, Any], root: Path) -> None:
    """Gives `pairs` the scores of the samples as its own, where its answers are those: as if it had been stopped once
    all were scored."""
    import pyarrow.parquet as pq

    from posttrain.rewards.scoring import slices
    from posttrain.storage.pieces import Pieces
    from posttrain.storage.shards import name_of

    answers = root / stage["inputs"]["answers"] / "answers.parquet"
    table = pq.read_table(root / stage["inputs"][SCORED] / "scored.parquet")
    if table["tokens"] == pq.read_table(answers, columns=["tokens"])["tokens"]:
        pieces = Pieces(folder / "scratch" / "scored")
        for number, (start, stop) in enumerate(slices(answers)):
            pieces.keep(name_of(number), table.slice(start, stop - start))
