"""Verifies a run: the hash of every file of every artifact, checkpoint and shard, and the links.

`inspect` changes nothing. `repair` sets damaged files aside, so that the next `posttrain round` runs those stages again
and no others; intact files are not touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import DamagedError
from posttrain.storage import store
from posttrain.storage.checkpoint_seals import SEAL
from posttrain.storage.checkpoint_seals import is_whole as checkpoint_is_whole
from posttrain.storage.files import file_hash, read_json, remove
from posttrain.storage.pieces import is_whole as piece_is_whole
from posttrain.storage.store import Store


@dataclass(frozen=True)
class Finding:
    """A file that does not match its hash, or does not belong. `then`: the consequence of `repair`."""

    kind: str  # artifact, checkpoint, shard, run, link, stray or leftover
    path: str  # relative to the run
    what: str
    then: str


def inspect(run: Store) -> dict[str, Any]:
    """Counts what there is, lists damage (`findings`) and the stages to be run again (`runs_again`)."""
    rounds, findings = _run_file(run)
    damaged = [found for folder in sorted(run.artifacts.iterdir()) for found in _artifact(folder, rounds)]
    under_way = [found for folder in sorted(run.work.glob("*")) for found in _under_way(run, folder)]
    findings += [*damaged, *under_way, *_links(run, rounds)]
    keys = {Path(found.path).name for found in damaged if found.kind == "artifact"}
    again = [
        {"round": entry["round"], "stage": role, "key": key}
        for entry in rounds
        for role, key in entry["stages"].items()
        if key in keys or not run.has(key)
    ]
    files = [path for folder in (run.artifacts, run.work) for path in folder.rglob("*") if path.is_file()]
    return {
        "run": str(run.root),
        "artifacts": sum(1 for _ in run.artifacts.iterdir()),
        "checkpoints": sum(1 for _ in run.work.glob("*/scratch/checkpoints/checkpoint-*")),
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "findings": [vars(found) for found in findings],
        "runs_again": again,
    }


def repair(run: Store, findings: list[dict[str, Any]]) -> None:
    """Repairs what `inspect` found."""
    for found in findings:
        path = run.root / found["path"]
        if found["kind"] == "artifact":
            run.set_aside(path.name)
        elif found["kind"] == "stray":
            aside = run.root / store.ASIDE / found["path"]
            aside.parent.mkdir(parents=True, exist_ok=True)
            path.rename(aside)
        elif found["kind"] == "link":
            continue
        elif path.is_dir():
            remove(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(DamagedError):
        run.relink(run.read_run().get("rounds", []))


def _run_file(run: Store) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The rounds of run.json, and the findings about it."""
    then = "`round --n N` writes it anew: no stage is done again"
    if not (run.root / "run.json").exists() and any(run.artifacts.iterdir()):
        return [], [Finding("run", "run.json", "is gone", then)]
    try:
        return run.read_run().get("rounds", []), []
    except DamagedError:
        return [], [Finding("run", "run.json", "is not what was written", then)]


def _artifact(folder: Path, rounds: list[dict[str, Any]]) -> Iterator[Finding]:
    name = f"artifacts/{folder.name}"
    if not folder.is_dir() or folder.name.startswith("."):
        yield Finding("stray", name, "is no artifact", f"it is moved to {store.ASIDE}/")
        return
    try:
        known = store.read_manifest(folder)["files"]
    except DamagedError:
        known = {}
    found = store.damaged_files(folder)
    lost = [file for file in found if file in known or file == store.MANIFEST]
    if not lost:
        for file in found:
            yield Finding("stray", f"{name}/{file}", "was not published with it", f"it is moved to {store.ASIDE}/")
        return
    roles = [f"{role} of round {entry['round']}" for entry in rounds for role, key in entry["stages"].items()
             if key == folder.name]  # fmt: skip
    then = f"runs again: {', '.join(roles)}" if roles else "no round needs it"
    yield Finding("artifact", name, f"damaged: {', '.join(lost)}", then)


def _under_way(run: Store, folder: Path) -> Iterator[Finding]:
    name = f"work/{folder.name}"
    if not folder.is_dir():
        yield Finding("stray", name, "is no stage under way", f"it is moved to {store.ASIDE}/")
        return
    if run.has(folder.name):
        yield Finding("leftover", name, "the stage is finished", "it is removed")
        return
    if _abandoned(run, folder):
        yield Finding("leftover", name, "was begun by a recipe that has changed since", "it is removed")
        return
    again = "the stage goes on from what is whole"
    checks: list[tuple[str, str, Callable[[Path], bool]]] = [
        ("checkpoint", "scratch/checkpoints/checkpoint-*", checkpoint_is_whole),
        ("shard", "scratch/**/*.parquet", piece_is_whole),
    ]
    for kind, pattern, whole in checks:
        for path in sorted(folder.glob(pattern)):
            if not whole(path):
                what = "was not finished" if path.is_dir() and not (path / SEAL).exists() else "is not what was written"
                yield Finding(kind, str(path.relative_to(run.root)), what, again)


def _abandoned(run: Store, folder: Path) -> bool:
    """Whether the work folder is older than the run's recipe and was begun with another one."""
    recipe = run.root / "recipe.yaml"
    try:
        began = read_json(folder / "stage.json").get("recipe")
        older = (folder / "stage.json").stat().st_mtime_ns < recipe.stat().st_mtime_ns
        return older and began != file_hash(recipe)
    except (DamagedError, OSError):
        return False


def _links(run: Store, rounds: list[dict[str, Any]]) -> Iterator[Finding]:
    for name, path in run.wanted_links(rounds).items():
        link = run.root / name
        if path.exists() and not (link.exists() and link.samefile(path)):
            yield Finding("link", name, "does not lead to its artifact", "it is made anew")
