"""Made-up runs that a report is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.tables import SCORED_ANSWERS
from posttrain.storage import store
from posttrain.storage.store import Store

HOSTILE = "<script>alert('1')</script> & \"<b>\" $x_1$"

ODD = "\u202eturned\u202c \x00\x1b[31m e\u0301 \u2028 \U0001f600 ไทย עברית"

CHECK = {"use": "check.py", "function": None, "weight": 1.0, "for": None}

# As a manifest has it: without the address of the judge.
RUBRIC = {**CHECK, "use": "polite.md", "judge": {"model": "judge", "temperature": 0.0, "max_tokens": 512}}

SCORED = SCORED_ANSWERS.append(pa.field("score", pa.float64()))


def figure(value: float | None, width: float = 0.05) -> dict[str, Any]:
    return {"value": value, "ci95": None if value is None else [value - width, value + width], "n": 40}


def sample(prompt: str, text: str, tag: str, index: int = 0, right: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "prompt_id": prompt,
        "sample_index": index,
        "tag": tag,
        "prompt": [{"role": "user", "content": f"What is {prompt}?"}],
        "completion": [{"role": "assistant", "content": text}],
        "tokens": [5] * len(text),
        "n_tokens": len(text),
        "finish": "stop",
        "logprob": 0.0,
        "columns": "{}",
        "rewards": json.dumps({"check": right, "reward-model": -1.5 * index}),
        **more,
    }


# Of each prompt what the base and two rounds say, with the verdict.
GREEDY = {
    "gained": [("2 + 3 = 4", 0.0), ("2 + 3 = 5", 1.0), ("2 + 3 = 5", 1.0)],
    "lost": [("nine", 1.0), ("nine", 1.0), ("ten", 0.0)],
    "between": [("a b c", 1.0), ("a x c", 0.0), ("a b c", 1.0)],
    "same": [("yes", 1.0), ("yes", 1.0), ("yes", 1.0)],
    HOSTILE: [(HOSTILE, None), (ODD, None), (HOSTILE, None)],
}


def heldout(number: int) -> list[dict[str, Any]]:
    rows = []
    for prompt, by_round in GREEDY.items():
        text, right = by_round[number]
        rows.append(sample(prompt, text, "greedy", right=right))
        rows += [sample(prompt, said, "sampled", index) for index, said in enumerate(["ab", "ab", "abcd", "ab"])]
    return rows


def scored(number: int) -> list[dict[str, Any]]:
    return [
        sample(f"{prompt}", f"{prompt} {index}", "", index, right=float(index % 2), score=index / 4 + number / 100)
        for prompt in ("one", "two")
        for index in range(3)
    ]


class Made:
    """A run folder, artifact by artifact, as the loop leaves it."""

    def __init__(self, root: Path) -> None:
        self.store, self.rounds = Store(root), []
        for folder in (self.store.artifacts, self.store.work):
            folder.mkdir(parents=True)

    def stage(
        self,
        role: str,
        metrics: Mapping[str, Any],
        inputs: Mapping[str, str] | None = None,
        tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    ) -> str:
        key = f"{role}-{len(list(self.store.artifacts.iterdir())):016x}"
        folder = self.store.begin(key, {})
        for name, rows in (tables or {}).items():
            schema = SCORED if name == "scored" else SCORED_ANSWERS
            pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), folder / "out" / f"{name}.parquet")
        config = {"rewards": [CHECK, RUBRIC]}
        manifest = {
            "stage": role.partition("_samples")[0],
            "key": key,
            "input_keys": inputs or {},
            "outside": {},
            "config": config,
        }
        manifest |= {"versions": {"python": "3.11"}, "seconds": 2.0, "metrics": metrics}
        store.publish(folder, self.store.artifacts, manifest)
        self.rounds[-1]["stages"][role] = key
        self.write()
        return key

    def benchmark(self, name: str, rows: Sequence[Mapping[str, Any]], asked: Mapping[str, Any]) -> None:
        key = f"benchmark-{len(list(self.store.artifacts.iterdir())):016x}"
        folder = self.store.begin(key, {})
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / "out" / "questions.parquet")
        manifest = {"stage": "benchmark", "key": key, "input_keys": {}, "outside": {}, "config": {"benchmark": asked}}
        manifest |= {"versions": {"python": "3.11"}, "seconds": 2.0, "metrics": {"figures": {}}}
        store.publish(folder, self.store.artifacts, manifest)
        self.rounds[-1]["stages"][f"benchmark_{name}"] = key
        self.write()

    def write(self) -> None:
        recipe = f"# resolved\nname: made-up\nsamples: {HOSTILE}\n"
        self.store.write_run({"version": 1, "recipe": "made-up <i>", "rounds": self.rounds}, recipe)

    def begin(self) -> None:
        self.rounds.append({"round": len(self.rounds), "stages": {}})

    def end(self, policy: str, promoted: bool = True) -> None:
        self.rounds[-1] |= {"promoted": promoted, "policy": policy}
        self.write()

    def evaluation(self, number: int, policy: str) -> None:
        found = {"greedy": figure(0.5 + number / 10), "pass@1": figure(0.4), "pass@8": figure(0.9)}
        found |= {"reward": figure(None if number == 0 else -1.0), "mean_length": 20.5, "unfinished": 0.01}
        found["measure"] = {"notes": {"greedy": figure(0.3), "sampled": figure(0.2), "reward_model_pick": figure(None)}}
        self.stage("evaluate", {"dev": found}, {"policy": policy})
        self.stage("heldout", {"heldout": found}, {"policy": policy}, {"heldout": heldout(number)})


CALIBRATED = {
    "pair_accuracy": figure(0.75),
    "ece": figure(0.125),
    "bins": [{"confidence": 0.625, "accuracy": 0.5, "n": 30}, {"confidence": 0.875, "accuracy": 0.75, "n": 10}],
}

WATCHED = ("proxy_reward", "heldout_reward", "length", "accuracy")

WATCH = {
    "figures": {side: dict.fromkeys(WATCHED, figure(0.5)) for side in ("policy", "previous", "base")},
    "changes": {side: dict.fromkeys(WATCHED, figure(0.125)) for side in ("previous", "base")},
    "win_rates": {
        side: {"judge<b>$": {"raw": figure(0.625), "length_controlled": figure(None), "ties": 0.1}}
        for side in ("previous", "base")
    },
    "warnings": [f"the proxy rose {HOSTILE}"],
    "judges": {"judge<b>$": CALIBRATED, "check": {"pair_accuracy": figure(0.875)}},
}

FILTERS = {
    "rows": 10,
    "kept": 4,
    "dropped": {"format: empty": 1, "best-of-k: not the best": 5},
    "filters": [{"filter": "format", "in": 10, "out": 9}, {"filter": "best-of-k", "in": 9, "out": 4}],
}


def full_round(run: Made, number: int, base: str, promoted: bool) -> str:
    run.begin()
    preferences = run.stage("preferences", {"pairs": 8}, {"policy": base})
    model = run.stage("reward_model", CALIBRATED, {"preferences_1": preferences})
    samples = run.stage("answers_samples", {"prompts": 2, "completions": 6}, {"policy": base})
    scores = run.stage("scores", {}, {"answers": samples, "reward_model": model}, {"scored": scored(number)})
    kept = run.stage("filters", FILTERS, {"scored": scores})
    sft = run.stage("sft", {"rows": 4}, {"model": base, "kept": kept})
    dpo = run.stage("dpo", {"pairs": 7}, {"model": sft, "preferences_1": preferences})
    run.evaluation(number, dpo)
    run.stage("promote", {"promoted": promoted, "value": 0.0625, "ci95": [0.03125, 0.09375], "n": 40})
    run.stage("watch", WATCH)
    run.end(f"artifacts/{dpo}" if promoted else run.rounds[-2]["policy"], promoted)
    return dpo


def begun(root: Path) -> Made:
    """The base's evaluation alone."""
    run = Made(root)
    run.begin()
    run.stage("prompts", {})
    run.evaluation(0, "base-0")
    run.end("/models/base")
    return run
