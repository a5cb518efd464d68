"""Sampling on two nodes of a Ray cluster against one, and what Ray adds to a round.

    python benchmarks/nodes.py MODEL [--prompts 64] [--new 128] [--set KEY=VALUE] [--folder runs/nodes]

MODEL is a folder. A round of recipes/instructions.yaml in a small size: on this machine with two workers, on a Ray
cluster of two nodes of one core each, and on one of a single node until it has sampled. The nodes are this machine: run
it on one of two cores. Seconds of `answers samples` are from the beginning of the stage to its end.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from posttrain.storage.store import read_manifest

STAGE = re.compile(r"answers samples +([\d.]+) (s|min)\b")


def round_of(model: Path, run: Path, given: argparse.Namespace, changes: Sequence[str]) -> list[str]:
    settings = [
        f"model.path={model}",
        f"samples.prompts={given.prompts}",
        f"samples.max_new_tokens={given.new}",
        f"engine.shard_tokens={8 * (8 * given.new + 100)}",  # eight prompts
        "prompts.dev.rows=:8",
        "prompts.heldout.rows=:8",
        "preferences.prompts=16",
        "preferences.keep=[significantly_better, better, slightly_better, marginally_better]",
        "filters=[]",
        *(f"{name}.max_steps=2" for name in ("reward_model", "sft", "dpo")),
        "dpo.margin=0",
        "promote=always",
        *given.set,
        *changes,
    ]
    words = [sys.executable, "-m", "posttrain", "round", "instructions", "--n", "1", "--run", str(run)]
    return [*words, *(word for one in settings for word in ("--set", one))]


def timed(words: Sequence[str], log: Path, until_sampled: bool = False) -> tuple[float, float]:
    """Seconds of the command, and of its stage."""
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
        while process.poll() is None:
            time.sleep(0.2)
            if until_sampled and STAGE.search(log.read_text()):
                process.terminate()
                process.wait()
                break
    found = STAGE.search(log.read_text())
    if not found or (process.returncode and not until_sampled):
        raise SystemExit(f"failed, see {log}")
    return time.monotonic() - began, float(found[1]) * (60 if found[2] == "min" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--folder", type=Path, default=Path("runs/nodes"))
    given = parser.parse_args()
    from ray.cluster_utils import Cluster

    given.folder.mkdir(parents=True)
    arms = {"this machine, two workers": 0, "Ray, two nodes": 2, "Ray, one node": 1}
    whole, sampled = dict[str, float](), dict[str, float]()
    print("| | round, s | sampling, s |")
    print("| --- " * 3 + "|")
    for number, (arm, nodes) in enumerate(arms.items()):
        run = given.folder / f"run-{number}"
        changes = ["compute.cluster={kind: ray}"] if nodes else ["compute.workers=2"]
        words = round_of(given.model.resolve(), run, given, changes)
        cluster = None
        if nodes:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            for _ in range(nodes):
                cluster.add_node(num_cpus=1)
            os.environ["RAY_ADDRESS"] = str(cluster.address)
        try:
            whole[arm], sampled[arm] = timed(words, given.folder / f"log-{number}.txt", until_sampled=nodes == 1)
        finally:
            if cluster:
                cluster.shutdown()
        print(f"| {arm} | {'' if nodes == 1 else f'{whole[arm]:.0f}'} | {sampled[arm]:.0f} |", flush=True)
    here, two, one = arms
    same = _made(given.folder / "run-0") == _made(given.folder / "run-1")
    print(
        f"\nTwo nodes sample {sampled[one] / sampled[two]:.2f} times as fast as one; Ray's round takes "
        f"{whole[two] / whole[here]:.2f} times this machine's; the files are {'the same' if same else 'different'}"
    )


def _made(run: Path) -> dict[str, object]:
    """The hashes of the files of each artifact."""
    return {path.name: read_manifest(path)["files"] for path in (run / "artifacts").iterdir()}


if __name__ == "__main__":
    main()
