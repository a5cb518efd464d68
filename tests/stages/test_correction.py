"""The stage that asks the policy again: by a model that has learned what to answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.by_heart import Text, taught
from support.interrupted import says

from posttrain.config import Correction, RewardEntry
from posttrain.data.chat_template import render_completion, render_prompt
from posttrain.data.tables import CORRECTED, SCORED_ANSWERS
from posttrain.errors import RecipeError
from posttrain.job import Job
from posttrain.loop import play
from posttrain.planning.dry_run import DryRunner
from posttrain.recipe.load import load
from posttrain.stages import correction
from posttrain.storage import store

REWARDS = [{"use": "word-problems.py", "function": None, "weight": 1.0, "for": "scores"}]
NAME = RewardEntry.model_validate(REWARDS[0]).name
SCHEMA = SCORED_ANSWERS.append(pa.field("score", pa.float64()))
MESSAGE = Correction.model_fields["message"].default
# Of each prompt what its samples say and are worth, and what the model says when it is asked again, and once more.
ASKED = {
    "0": ("Tom has 3 apples and buys 2.", "5", [("Answer: 4", 0.0), ("I do not know.", -0.5)], ["Answer: 5"]),
    "1": ("Una has 7 bowls and loses 4.", "3", [("Answer: 11", 0.0)], ["Answer: 10", "Answer: 3"]),
    "2": ("Kai has 2 hats and finds 6.", "8", [("Answer: 8", 1.0)], []),
    "3": ("Jon has 9 rings and gives 5.", "4", [("Answer:", 0.0)], []),  # cut off
    "4": ("Tom has 8 pens and buys 1.", "9", [("Answer: 7", 0.0)], ["Answer: 6", "Answer: 5", "Answer: 9"]),
}


def prompt(number: str) -> list[dict[str, str]]:
    return says("user", ASKED[number][0])


def dialogue(number: str, *answers: str) -> list[dict[str, str]]:
    said = prompt(number)
    for answer in answers:
        said += [*says("assistant", answer), *says("user", MESSAGE)]
    return said


def texts(tokenizer: Any) -> list[Text]:
    found = []
    for number, (_, _, samples, answers) in ASKED.items():
        first = samples[0][0]
        for at, answer in enumerate(answers):
            said = dialogue(number, first, *answers[:at])
            found.append((render_prompt(tokenizer, said), render_completion(tokenizer, said, answer)))
    return found


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("policy"), texts, 25)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {
            "prompt_id": number,
            "sample_index": index,
            "tag": "",
            "prompt": prompt(number),
            "completion": says("assistant", text),
            "tokens": [1],
            "n_tokens": 1,
            "finish": "length" if number == "3" else "stop",
            "columns": json.dumps({"answer": answer}),
            "rewards": json.dumps({NAME: value}),
            "score": value,
        }
        for number, (_, answer, given, _) in ASKED.items()
        for index, (text, value) in enumerate(given)
    ]
    folder = tmp_path_factory.mktemp("samples")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "scored.parquet")
    manifest = {"metrics": {"logits": {"mean": 0.0, "deviation": 1.0}}}
    (folder / store.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return folder


def run(folder: Path, samples: Path, policy: Path, **more: Any) -> dict[str, Any]:
    section = {"k": 1, "temperature": 0.1, "max_new_tokens": 16, **more}
    engine = {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 4096}
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    config = {"correction": section, "rewards": REWARDS, "engine": engine}
    return correction.run(Job(config, {"samples": samples, "policy": policy}, folder / "out", folder / "scratch", 7))


def written(folder: Path) -> list[dict[str, Any]]:
    rows = pq.read_table(folder / "out" / "scored.parquet").to_pylist()
    return [row for row in rows if row["tag"] == CORRECTED]


def test_a_right_second_answer_stands_beside_the_samples_as_one_to_the_prompt(
    tmp_path: Path, samples: Path, policy: Path
) -> None:
    found = run(tmp_path, samples, policy)
    assert found["prompts"] == {
        "asked": 3,
        "right": 1,
        "unchecked": 0,
        "unfinished": 1,
        "too_long": 0,
        "left_out": 0,
        "solved": 1,
    }
    (row,) = written(tmp_path)
    assert (row["prompt_id"], row["sample_index"], row["score"], row["finish"]) == ("0", 2, 1.0, "stop")
    assert row["prompt"] == prompt("0") and row["completion"] == says("assistant", "Answer: 5")
    (pair,) = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert (pair["chosen"], pair["rejected"]) == (says("assistant", "Answer: 5"), says("assistant", "Answer: 4"))
    assert pair["prompt"] == prompt("0") and pair["margin"] == 1.0


def test_what_is_wrong_again_is_asked_again_and_the_dialogue_may_be_learned(
    tmp_path: Path, samples: Path, policy: Path
) -> None:
    found = run(tmp_path, samples, policy, turns=4, learn="dialogue")
    assert found["solved"] == [1, 1, 1] and found["not_asked_again"] == 0  # and no fourth turn
    first, second, third = written(tmp_path)
    assert third["prompt"] == dialogue("4", "Answer: 7", "Answer: 6", "Answer: 5")
    assert first["prompt"] == dialogue("0", "Answer: 4")
    assert second["prompt"] == dialogue("1", "Answer: 11", "Answer: 10")
    assert second["completion"] == says("assistant", "Answer: 3")
    assert found["rows"] == pq.read_metadata(samples / "scored.parquet").num_rows + 3


def test_an_answer_that_nobody_checked_is_not_called_wrong(tmp_path: Path, samples: Path, policy: Path) -> None:
    table = pq.read_table(samples / "scored.parquet").to_pylist()
    (tmp_path / "samples").mkdir()
    unchecked = [{**row, "rewards": json.dumps({NAME: None, "reward-model": -1.0})} for row in table[:1]]
    rows = [*unchecked, {**table[1], "score": -2.0}, *table[2:]]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "samples" / "scored.parquet")
    (tmp_path / "samples" / store.MANIFEST).write_text((samples / store.MANIFEST).read_text("utf-8"), "utf-8")
    run(tmp_path, tmp_path / "samples", policy, k=8, temperature=2.0)
    pairs = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert "Answer: 4" not in [pair["rejected"][0]["content"] for pair in pairs]


def test_it_stands_behind_the_search_and_before_the_filters() -> None:
    runner = DryRunner()
    play(load("quickstart", ["correction={}", "search={}", "dpo.pairs_from=[pairs, correction]"]), runner, 1)
    by_name = {one.role or one.stage: one for one in runner.stages if one.number == 1}
    assert by_name["correction"].inputs["samples"] == "1/search"
    assert by_name["filters"].inputs["scored"] == "1/correction"
    assert by_name["dpo"].inputs["correction"] == "1/correction"
    assert by_name["correction"].config["correction"]["max_new_tokens"] == 48  # as samples


def test_it_needs_a_function_that_checks() -> None:
    with pytest.raises(RecipeError, match="does not say which answers are right"):
        load("quickstart", ["correction={}", "reward=[{use: reward-model}, {use: readers.py, for: preferences}]"])
