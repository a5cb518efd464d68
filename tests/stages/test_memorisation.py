"""A policy that has its rows by heart shows it, and one that has not does not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.by_heart import Text, taught
from support.interrupted import BASE, says

from posttrain.data.chat_template import render_completion, render_prompt
from posttrain.data.tables import GREEDY, SAMPLED
from posttrain.evaluation.memorisation import apart
from posttrain.evaluation.statistics import mean
from posttrain.job import Job
from posttrain.loop import play
from posttrain.planning.dry_run import DryRunner
from posttrain.recipe.load import load
from posttrain.stages import memorisation

N = 8


def rows(seed: int, count: int, tag: str = SAMPLED) -> list[dict[str, Any]]:
    """Answers of random digits, which nobody could guess; the last one is short."""
    drawn = random.Random(seed)
    made = [" ".join(str(drawn.randrange(10)) for _ in range(20)) for _ in range(count - 1)]
    return [
        {
            "prompt_id": f"{seed}-{at}",
            "sample_index": 0,
            "tag": tag,
            "prompt": says("user", f"Say {seed * 100 + at}."),
            "completion": says("assistant", text),
        }
        for at, text in enumerate([*made, "7"])
    ]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    pq.write_table(pa.Table.from_pylist(rows(1, 12)), folder / "kept.parquet")
    others = [*rows(2, 12), *rows(3, 12, GREEDY)]  # greedy answers are not asked for
    pq.write_table(pa.Table.from_pylist(others), folder / "heldout.parquet")
    return folder


def asked(policy: Path, tables: Path, scratch: Path) -> dict[str, Any]:
    config = {
        "memorisation": {"n": N, "rows": 100},
        "engine": {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 500},
    }
    return memorisation.run(Job(config, {"policy": policy, "kept": tables, "heldout": tables}, scratch, scratch, 0))


def overfitted(folder: Path) -> Path:
    """The shipped base after many steps on the kept rows."""

    def texts(tokenizer: Any) -> list[Text]:
        return [
            (
                render_prompt(tokenizer, row["prompt"]),
                render_completion(tokenizer, row["prompt"], row["completion"][0]["content"]),
            )
            for row in rows(1, 12)
        ]

    return taught(folder, texts, 40)


def test_rows_learned_by_heart_show_and_others_do_not(tmp_path: Path, tables: Path) -> None:
    found = asked(overfitted(tmp_path / "policy"), tables, tmp_path / "scratch")
    assert found["trained"]["verbatim"]["value"] > 0.8 and found["trained"]["probability"]["value"] > 0.8
    assert found["others"]["verbatim"]["value"] < 0.2 and found["others"]["probability"]["value"] < 0.4
    assert found["verbatim"]["ci95"][0] > 0.3 and found["verbatim"]["n"] == 22
    assert found["trained"]["too_short"] == found["others"]["too_short"] == 1


def test_a_policy_that_did_not_see_them_has_none_by_heart(tmp_path: Path, tables: Path) -> None:
    found = asked(BASE, tables, tmp_path)
    for whose in ("trained", "others"):
        assert found[whose]["verbatim"]["value"] < 0.2 and found[whose]["verbatim"]["n"] == 11
    low, high = found["probability"]["ci95"]
    assert low < 0 < high


def test_the_difference_of_two_means_has_the_interval_of_both() -> None:
    one, other = mean([0.1, 0.3, 0.4, 0.8]), mean([0.0, 0.1, 0.2])
    low, high = apart(one, other)["ci95"]
    widths = [figure["ci95"][1] - figure["ci95"][0] for figure in (one, other)]
    assert (high - low) ** 2 == pytest.approx(widths[0] ** 2 + widths[1] ** 2)
    assert apart(one, mean([])) == {"value": None, "ci95": None, "n": 0}


def test_it_is_made_where_the_recipe_asks_for_it_and_nothing_reads_it() -> None:
    runner = DryRunner()
    play(load("quickstart", ["evaluate.memorisation={n: 16}"]), runner, 2)
    made = [planned for planned in runner.stages if planned.stage == "memorisation"]
    assert [planned.number for planned in made] == [1, 2]
    assert all(planned.inputs["heldout"] == f"{planned.number - 1}/heldout" for planned in made)
    keys = {planned.key for planned in made}
    assert not any(keys & {*planned.waits, *planned.inputs.values()} for planned in runner.stages)
