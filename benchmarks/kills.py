"""Nothing is lost: a reduced quickstart is killed many times, and every file of it is damaged in every way.

    python benchmarks/kills.py --kills 100 [--folder runs/kills] [--json FILE]     goes on where it was stopped
    python benchmarks/kills.py --damage [--folder runs/kills] [--json FILE]

- Kills: SIGKILL to the process group, or to the command alone (every fourth), at a random line of what the run does:
  each file opened for writing, rename, removal, shard begun and training step is a line
  (tests/support/faulty/sitecustomize.py). A run that got to its end before its kill is checked, and the next one is
  begun. After each kill all artifacts are hashed.
- Damage: each file of each artifact, run.json, and each checkpoint and shard of stages that were stopped under way is
  emptied, cut by a byte, changed by a bit in its middle, and removed, one at a time; then `verify` must find it. For
  some stages the repair is done for real: `verify --repair`, the same command, the same bits.

What this does not cover: machines that lose power (files are fsynced, but no test pulls the plug), other file systems.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support import faults

from posttrain.storage import store, verify
from posttrain.storage.store import Store


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--damage", action="store_true")
    options.add_argument("--folder", type=Path, default=Path("runs/kills"))
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    folder = given.folder.resolve()
    whole = uninterrupted(folder)
    told = damage(whole, folder) if given.damage else kills(whole, folder, given.kills)
    print(json.dumps(told, indent=1))
    if given.json:
        known = json.loads(given.json.read_text("utf-8")) if given.json.exists() else {}
        known["damage" if given.damage else "kills"] = told
        given.json.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def uninterrupted(folder: Path) -> faults.Faulty:
    run = faults.Faulty(folder / "whole")
    if not (run.root / "round-1" / "promote").exists():
        assert run.attempt().returncode == 0
    return run


def kills(whole: faults.Faulty, folder: Path, count: int) -> dict[str, Any]:
    """Kill runs `count` times in all. What each attempt did is kept in a file, so that this goes on when stopped."""
    record = folder / "attempts.jsonl"
    rows = [json.loads(line) for line in record.read_text("utf-8").splitlines()] if record.exists() else []
    while sum(row["killed"] for row in rows) < count or not rows[-1]["done"]:
        number = len(rows)
        draw = random.Random(number)
        ends = [at for at, row in enumerate(rows) if row["done"]]
        run = faults.Faulty(folder / f"killed-{len(ends)}")
        enough = sum(row["killed"] for row in rows) >= count
        started = time.monotonic()
        made = run.attempt(0 if enough else draw.randint(1, 160), leader_alone=draw.random() < 0.25)
        assert made.killed or made.returncode == 0, f"wedged: {made.returncode} {made.errors}"
        row = {
            "run": len(ends),
            "killed": made.killed,
            "done": not made.killed,
            "at": made.journal[-1][:2] if made.killed and made.journal else None,
            "partial": run.partial(),
            "seconds": round(time.monotonic() - started, 1),
            "journal": made.journal,
            "same_bits": made.killed or run.payloads() == whole.payloads(),
        }
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
    return summary(rows)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all attempts."""
    steps: list[int] = []
    again, lost = 0, []
    for number in sorted({row["run"] for row in rows}):
        run = faults.Faulty(Path())
        for row in rows:
            if row["run"] == number:
                run.attempts.append(faults.Attempt(-9 if row["killed"] else 0, row["journal"], ""))
        steps += run.repeated_steps()
        more, each = run.repeated_shards()
        again, lost = again + more, lost + each
    where = Counter(_where(row["at"]) for row in rows if row["killed"])
    ended = [row for row in rows if row["done"]]
    return {
        "kills": sum(row["killed"] for row in rows),
        "killed_at": dict(where.most_common()),
        "stages_hit": sorted({name for row in rows if row["at"] and (name := _stage(row["at"]))}),
        "runs": len(ended),
        "kills_per_run": round(sum(row["killed"] for row in rows) / max(len(ended), 1), 1),
        "partial_artifacts": sum(len(row["partial"]) for row in rows),
        "wedged_runs": 0,  # an attempt that neither was killed nor ended well stops this script
        "runs_with_the_same_bits": sum(row["same_bits"] for row in ended),
        "trainings_resumed": len(steps),
        "most_steps_repeated": max(steps, default=0),
        "steps_between_checkpoints": faults.SAVE_STEPS,
        "finished_shards_done_again": again,
        "most_shards_lost_by_a_kill": max(lost, default=0),
        "processes_that_work_on_shards": faults.WORKERS * faults.STAGES_AT_ONCE,
        "median_seconds_of_an_attempt": statistics.median(row["seconds"] for row in rows),
    }


def table(told: dict[str, Any]) -> str:
    """What the kills and the damages showed, for docs/nothing-is-lost.md."""
    kills, lines = told["kills"], ["| kills | |", "| --- | --- |"]
    where = ", ".join(f"{place} {times}" for place, times in kills["killed_at"].items())
    stages, whole = ", ".join(kills["stages_hit"]), f"{kills['runs_with_the_same_bits']} of {kills['runs']}"
    steps = f"{kills['most_steps_repeated']}, with {kills['steps_between_checkpoints']} between checkpoints"
    shards = f"{kills['most_shards_lost_by_a_kill']}, with {kills['processes_that_work_on_shards']} processes on shards"
    rows: dict[str, Any] = {
        "SIGKILLs": kills["kills"],
        "killed at": where,
        "stages hit": stages,
        "kills a run, on average": kills["kills_per_run"],
        "partial artifacts": kills["partial_artifacts"],
        "runs that did not go on": kills["wedged_runs"],
        "runs that ended with the same bits": whole,
        "trainings that went on at a checkpoint": kills["trainings_resumed"],
        "most training steps done again after a kill": steps,
        "finished shards done again": kills["finished_shards_done_again"],
        "most begun shards lost by a kill": shards,
    }
    if damage := told.get("damage"):
        tried = ", ".join(f"{kind} {times}" for kind, times in damage["tried"].items())
        rows |= {
            "damages tried": f"{damage['tried_in_all']:,}: {tried}",
            "found by `verify`": f"{damage['found_by_verify']:,} of {damage['tried_in_all']:,}",
        }
        for each in damage["repaired_for_real"]:
            same = "the same bits" if each["same_bits"] else "**other bits**"
            rows[f"{each['stage']} damaged, repaired: ran again"] = f"{', '.join(each['ran'])}; {same}"
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])


def _where(at: list[str] | None) -> str:
    if at is None:
        return "before it did anything"
    what, path = at[0], at[1] if len(at) > 1 else ""
    if what in ("step", "shard"):
        return {"step": "a training step", "shard": "a shard"}[what]
    parts = path.split("/")
    if parts[0] == "artifacts":
        return "publishing"
    if parts[0] != "work":
        return "run.json, recipe.yaml, links, lock"
    kinds = {"out": "the payload", "stage.json": "a stage's beginning", "lock": "a stage's beginning"}
    if len(parts) > 3 and parts[2] == "scratch":
        return {"checkpoints": "a checkpoint"}.get(parts[3], "a shard")
    return kinds.get(parts[2] if len(parts) > 2 else "", "a stage's folder")


def _stage(at: list[str]) -> str:
    parts = (at[1] if len(at) > 1 else "").split("/")
    key = parts[1] if parts[0] in ("work", "artifacts") and len(parts) > 1 else parts[0] if at[0] == "step" else ""
    return key.rpartition("-")[0]


def damage(whole: faults.Faulty, folder: Path) -> dict[str, Any]:
    """Every file, in every way; each is put back before the next."""
    copy = folder / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole.root, copy, symlinks=True)
    tried: Counter[str] = Counter()
    missed: list[str] = []
    under_way = [stopped(whole, folder, stage) for stage in ("sft", "answers_pairs", "pairs")]
    for root, paths in [(copy, kept(copy)), *((root, begun(root)) for root in under_way)]:
        for path in paths:
            content = path.read_bytes()
            for harm in faults.DAMAGES:
                harm(path)
                if path.exists() and path.read_bytes() == content:
                    continue  # an empty file cannot be emptied
                tried[kind(path.relative_to(root))] += 1
                if not found(root, path):
                    missed.append(f"{path.relative_to(root)} {harm.__name__}")
                path.write_bytes(content)
    repaired = [repair(whole, folder, stage) for stage in ("sft", "scores", "promote")]
    return {
        "tried": dict(tried),
        "tried_in_all": sum(tried.values()),
        "found_by_verify": sum(tried.values()) - len(missed),
        "missed": missed,
        "repaired_for_real": repaired,
    }


def kept(root: Path) -> list[Path]:
    """What a finished run keeps."""
    files = [path for path in sorted((root / "artifacts").rglob("*")) if path.is_file()]
    return [*files, root / "run.json"]


def begun(root: Path) -> list[Path]:
    """What a stage that was stopped goes on from: whole checkpoints and shards. Not stage.json and tables of its
    scratch folder, which are made anew."""
    whole = [path.parent for path in sorted((root / "work").glob("*/scratch/checkpoints/*/posttrain.json"))]
    shards = [path for path in (root / "work").glob("*/scratch/**/*.parquet") if len(path.name.split(".")) == 3]
    return [*(path for folder in whole for path in sorted(folder.iterdir())), *sorted(shards)]


def kind(path: Path) -> str:
    if path.name in (store.MANIFEST, "run.json"):
        return path.name
    if path.parts[0] == "work":
        return "checkpoint" if "checkpoints" in path.parts else "shard"
    return f"artifact: {path.suffix or path.name}"


def found(root: Path, path: Path) -> bool:
    """Whether `verify` names what the file belongs to. A shard that is gone is no damage: it was not there yet."""
    name = str(path.relative_to(root))
    findings = verify.inspect(Store(root))["findings"]
    if not path.exists() and path.name.count(".") == 2:
        return True
    return any(name.startswith(each["path"]) for each in findings)


def stopped(whole: faults.Faulty, folder: Path, stage: str) -> Path:
    """A copy of the run in which a stage of round 1 is done again and was killed with something to go on from."""
    root = folder / f"stopped-{stage}"
    if not root.exists():
        shutil.copytree(whole.root, root, symlinks=True)
    run, key = faults.Faulty(root), Store(whole.root).read_run()["rounds"][1]["stages"][stage]
    for at in range(14, 100, 4):
        if begun(root):
            return root
        shutil.rmtree(root / "artifacts" / key, ignore_errors=True)
        run.attempt(kill_at=at)
    raise AssertionError(f"{stage} was never caught with a whole checkpoint or shard")


def repair(whole: faults.Faulty, folder: Path, stage: str) -> dict[str, Any]:
    """Damage an artifact, see the next round stop at it, repair, and run again."""
    root = folder / "repaired"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole.root, root, symlinks=True)
    run, key = faults.Faulty(root), Store(root).read_run()["rounds"][1]["stages"][stage]
    faults.flip(next(iter(store.payload(root / "artifacts" / key).values())))
    with Store(root).session():
        said = verify.inspect(Store(root))
        verify.repair(Store(root), said["findings"])
    made = run.attempt()
    ran = {line[1].split("/")[1].rpartition("-")[0] for line in made.journal if line[1].startswith("work/")}
    return {
        "stage": stage,
        "said_to_run_again": [each["stage"] for each in said["runs_again"]],
        "ran": sorted(ran),
        "exit_code": made.returncode,
        "same_bits": run.payloads() == whole.payloads(),
    }


if __name__ == "__main__":
    main()
