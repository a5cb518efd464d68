"""The likelihood of right answers, against transformers' own forward."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.by_heart import taught
from support.interrupted import BASE, says
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.chat_template import render_completion, render_prompt
from posttrain.data.tables import GREEDY, SAMPLED, SCORED_ANSWERS
from posttrain.job import Job
from posttrain.loop import play
from posttrain.planning.dry_run import DryRunner
from posttrain.recipe.load import load
from posttrain.stages import forecast

ASKED = says("user", "What is 2 + 3?")
TEXTS = {"It is 5.": 1.0, "5": 1.0, "It is 4.": 0.0, "Six.": 0.0}


def rows(prompt: str, texts: list[str], verdicts: list[float | None], tag: str = SAMPLED) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": prompt,
            "sample_index": at,
            "tag": tag,
            "prompt": ASKED,
            "completion": says("assistant", text),
            "rewards": json.dumps({"check": verdict}),
        }
        for at, (text, verdict) in enumerate(zip(texts, verdicts, strict=True))
    ]


def table(folder: Path, made: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(made, schema=SCORED_ANSWERS), folder / "heldout.parquet")
    return folder


def by_transformers(policy: Path, text: str) -> float:
    tokenizer, model = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy)
    before, answer = render_prompt(tokenizer, ASKED), render_completion(tokenizer, ASKED, text)
    with torch.inference_mode():
        logprob = model(torch.tensor([[*before, *answer]])).logits[0].float().log_softmax(-1)
    return sum(float(logprob[len(before) + at - 1, token]) for at, token in enumerate(answer))


def test_candidates_are_weighed_by_each_policy(tmp_path: Path) -> None:
    def texts(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
        return [(render_prompt(tokenizer, ASKED), render_completion(tokenizer, ASKED, "It is 5."))]

    better = taught(tmp_path / "better", texts, 30)
    first = [
        *rows("mixed", ["It is 5.", "It is 4."], [1.0, 0.0]),
        *rows("mixed", ["Seven."], [0.0], GREEDY),  # greedy answers are no candidates
        *rows("right", ["5", "5"], [1.0, 1.0]),
        *rows("note", ["Dear Ann"], [None]),
    ]
    second = [*rows("mixed", ["5", "Six.", "It is 4."], [1.0, 0.0, 0.0]), *rows("right", ["5"], [1.0])]
    config = {
        "forecast": {"prompts": 10},
        "rewards": {"check": 1.0},
        "engine": {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 40},
    }
    inputs = {"policy_0": BASE, "heldout_0": table(tmp_path / "first", first)}
    inputs |= {"policy_1": better, "heldout_1": table(tmp_path / "second", second)}
    found = forecast.run(Job(config, inputs, tmp_path / "out", tmp_path / "scratch", 0))
    assert (found["prompts"], found["candidates"]) == (1, 4)
    assert [one["accuracy"] for one in found["points"]] == pytest.approx([(0.5 + 1) / 2, (1 / 3 + 1) / 2])
    for policy, point in zip((BASE, better), found["points"], strict=True):
        weights = {text: math.exp(by_transformers(policy, text)) for text in TEXTS}
        wanted = sum(weights[text] for text, right in TEXTS.items() if right) / sum(weights.values())
        assert point["nll"] == pytest.approx(-math.log(wanted), abs=1e-3)
    assert found["points"][1]["nll"] < found["points"][0]["nll"]


def test_without_right_and_wrong_answers_there_are_no_points(tmp_path: Path) -> None:
    folder = table(tmp_path / "heldout", rows("right", ["5", "5"], [1.0, 1.0]))
    config = {"forecast": {}, "rewards": {"check": 1.0}, "engine": {}}
    found = forecast.run(Job(config, {"policy_0": BASE, "heldout_0": folder}, tmp_path, tmp_path, 0))
    assert found == {"prompts": 0, "candidates": 0, "points": []}


def test_it_is_made_once_where_the_recipe_asks_for_it_and_nothing_reads_it() -> None:
    runner = DryRunner()
    play(load("quickstart", ["evaluate.forecast={rounds: 2}"]), runner, 4)
    (made,) = [planned for planned in runner.stages if planned.stage == "forecast"]
    assert made.number == 2 and made.spec.background
    heldout = [made.inputs[f"heldout_{number}"] for number in range(3)]
    assert heldout == ["0/heldout", "1/heldout", "2/heldout"]
    assert not any(made.key in {*planned.waits, *planned.inputs.values()} for planned in runner.stages)
    without = DryRunner()
    play(load("quickstart", []), without, 4)
    assert not [planned for planned in without.stages if planned.stage == "forecast"]
