"""The gate: a paired test on dev against the last promoted policy, from the tables that evaluations leave."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny_models import reward_model, tokenizer

from posttrain.data.tables import GREEDY, SAMPLED, SCORED_ANSWERS
from posttrain.errors import StageError
from posttrain.job import Job
from posttrain.rewards.scoring import model_rewards
from posttrain.stages import promote

CHECK = {"use": "check.py", "function": None, "weight": 1.0, "for": None}


def evaluated(folder: Path, scores: Mapping[str, Sequence[float | None]], text: str = "Well") -> Path:
    """An evaluation: what the reward said of each prompt's sampled answers. Greedy ones and held-out ones mislead."""
    rows = [
        {
            "prompt_id": prompt,
            "sample_index": index,
            "tag": tag,
            "prompt": [{"role": "user", "content": f"{prompt}?"}],
            "completion": [{"role": "assistant", "content": f"{text} {index}"}],
            "columns": "{}",
            "rewards": json.dumps({"check": score if tag == SAMPLED else 0.0}),
        }
        for prompt, of_prompt in scores.items()
        for tag in (GREEDY, SAMPLED)
        for index, score in enumerate(of_prompt)
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED_ANSWERS), folder / "dev.parquet")
    return folder


def decided(
    root: Path, rule: str, inputs: Mapping[str, Path], rewards: Sequence[Any] = (CHECK,), **config: Any
) -> dict[str, Any]:
    root.mkdir(exist_ok=True)
    (root / "check.py").write_text("def f(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    for name in ("out", "scratch"):
        (root / rule / name).mkdir(parents=True)
    named = [{**entry, "use": str(root / entry["use"])} if entry["use"].endswith(".py") else entry for entry in rewards]
    return promote.run(
        Job({"promote": rule, "rewards": named, **config}, inputs, root / rule / "out", root / rule / "scratch", 0)
    )


def outcomes(n: int, gain: float) -> tuple[dict[str, list[float | None]], dict[str, list[float | None]]]:
    """Prompts of very different difficulty, on which the new policy is right a little more often."""
    rng = random.Random(0)
    old: dict[str, list[float | None]] = {}
    new: dict[str, list[float | None]] = {}
    for number in range(n):
        hard = rng.random()
        old[f"p{number}"] = [float(rng.random() < hard) for _ in range(8)]
        new[f"p{number}"] = [float(rng.random() < min(1, hard + gain)) for _ in range(8)]
    return new, old


def test_the_figure_is_the_mean_paired_difference_over_prompts(tmp_path: Path) -> None:
    new, old = outcomes(300, 0.05)
    new["open"], old["open"] = [None] * 8, [None] * 8  # no reward scores it
    new["once"], old["once"] = [1.0] * 8, [None] * 8
    inputs = {"candidate": evaluated(tmp_path / "new", new), "incumbent": evaluated(tmp_path / "old", old)}
    found = {rule: decided(tmp_path, rule, inputs) for rule in ("better", "not-worse", "always")}
    gains = [(sum(new[p]) - sum(old[p])) / 8 for p in new if p not in ("open", "once")]  # type: ignore[arg-type]
    mean = sum(gains) / 300
    half = 1.96 * math.sqrt(sum((gain - mean) ** 2 for gain in gains) / 299 / 300)
    for decision in found.values():
        assert (decision["n"], decision["value"]) == (300, pytest.approx(mean))
        assert decision["ci95"] == pytest.approx([mean - half, mean + half], abs=0.1 * half)
    assert mean - half > 0  # unpaired, the intervals of the two would overlap
    assert {rule: decision["promoted"] for rule, decision in found.items()} == {
        "better": True,
        "not-worse": True,
        "always": True,
    }
    assert json.loads((tmp_path / "better" / "out" / "decision.json").read_text()) == found["better"]


@pytest.mark.parametrize(("gain", "promoted"), [(0.0, {"not-worse", "always"}), (-0.1, {"always"})])
def test_what_is_not_better_or_worse(tmp_path: Path, gain: float, promoted: set[str]) -> None:
    if gain < 0:
        old, new = outcomes(300, -gain)
    else:
        new, _ = old, _ = outcomes(300, 0.0)
    inputs = {"candidate": evaluated(tmp_path / "new", new), "incumbent": evaluated(tmp_path / "old", old)}
    rules = ("better", "not-worse", "always")
    assert {rule for rule in rules if decided(tmp_path, rule, inputs)["promoted"]} == promoted


def test_where_no_function_judges_the_rounds_reward_model_scores_both(tmp_path: Path) -> None:
    model = tmp_path / "model"
    reward_model("llama").save_pretrained(model)
    tokenizer().save_pretrained(model)
    scores: dict[str, list[float | None]] = {f"p{number}": [None, None] for number in range(6)}
    inputs = {
        "candidate": evaluated(tmp_path / "new", scores, "Yes, it is"),
        "incumbent": evaluated(tmp_path / "old", scores, "I do not know"),
        "reward_model": model,
    }
    decision = decided(tmp_path, "better", inputs, [])

    def total(side: str) -> float:
        rows = pq.read_table(inputs[side] / "dev.parquet").to_pylist()
        return sum(model_rewards([row for row in rows if row["tag"] == SAMPLED], str(model)))

    assert decision["value"] == pytest.approx((total("candidate") - total("incumbent")) / 12, abs=1e-5)
    assert decision["n"] == 6
    half = decided(tmp_path / "half", "better", inputs, [], scoring_dtype="bfloat16")
    assert half["value"] != decision["value"] and half["value"] == pytest.approx(decision["value"], abs=0.05)


def test_nothing_to_compare_is_told(tmp_path: Path) -> None:
    scores: dict[str, list[float | None]] = {"open": [None] * 8}
    inputs = {"candidate": evaluated(tmp_path / "new", scores), "incumbent": evaluated(tmp_path / "old", scores)}
    with pytest.raises(StageError, match="no reward scores any dev prompt"):
        decided(tmp_path, "better", inputs)
