"""KTO in the loop: where it starts, what it reads, and who knows of it. Fake stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.loop_runs import EVALUATED, ROUND, go

from posttrain.config.kto import Kto, Threshold
from posttrain.errors import InputError, RecipeError
from posttrain.recipe.load import load
from posttrain.report.reading import open_run
from posttrain.report.status import status, table
from posttrain.stages.amounts import Sets, Shares, amounts
from posttrain.storage.store import Store

ON = "kto={}"


def stages(root: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Keys of round 1's artifacts by role, and the manifest of KTO's."""
    run = Store(root)
    keys = run.read_run()["rounds"][1]["stages"]
    return keys, run.manifest(keys["kto"])


def thumbs(folder: Path, *labels: bool) -> str:
    path = folder / "thumbs.jsonl"
    rows = [{"prompt": "How many?", "completion": f"It is {at}.", "label": label} for at, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{{path: {path}}}"


def test_it_follows_dpo_from_its_policy_and_what_it_made_is_the_candidate(tmp_path: Path) -> None:
    ran, _ = go(tmp_path, 2, ON)
    after_dpo = ROUND.index("dpo") + 1
    order = [*ROUND[:after_dpo], "kto", *ROUND[after_dpo:]]
    assert ran == ["prompts", *EVALUATED, *order, *order]
    keys, made = stages(tmp_path)
    assert made["input_keys"] == {"model": keys["dpo"], "samples": keys["scores"]}  # the model is the reference too
    run = Store(tmp_path)
    assert run.manifest(keys["answers_dev"])["input_keys"]["policy"] == keys["kto"]
    later = run.read_run()["rounds"][2]["stages"]
    assert run.manifest(later["answers_samples"])["input_keys"]["policy"] == keys["kto"]


def test_without_dpo_it_starts_from_what_sft_made(tmp_path: Path) -> None:
    ran, _ = go(tmp_path, 1, ON, "dpo=null")
    keys, made = stages(tmp_path)
    assert "pairs" not in ran and made["input_keys"]["model"] == keys["sft"]


def test_what_is_given_decides_its_key_and_prompts_that_are_evaluated_on_are_known_to_it(tmp_path: Path) -> None:
    given = [f"kto.given={thumbs(tmp_path, True, False)}", "kto.rows_from=[samples, given]"]
    go(tmp_path / "run", 1, *given)
    keys, made = stages(tmp_path / "run")
    assert set(made["outside"]) == {"given"} and made["input_keys"]["prompts"].startswith("prompts-")
    assert "given" not in made["config"]["kto"]  # where it lies decides nothing
    assert go(tmp_path / "run", 1, *given) == ([], [])
    thumbs(tmp_path, True, False, True)
    ran, _ = go(tmp_path / "run", 1, *given)
    assert ran == ["kto", *EVALUATED, "promote"]
    assert stages(tmp_path / "run")[0]["kto"] != keys["kto"]


def test_given_alone_reads_no_samples(tmp_path: Path) -> None:
    go(tmp_path / "run", 1, f"kto.given={thumbs(tmp_path, True, False)}", "kto.rows_from=given")
    assert set(stages(tmp_path / "run")[1]["input_keys"]) == {"model", "prompts"}


def test_a_threshold_starts_kto_anew_and_nothing_before_it(tmp_path: Path) -> None:
    go(tmp_path, 1, ON)
    ran, said = go(tmp_path, 1, ON, "kto.threshold={good: 0.9, bad: 0.1}")
    assert ran == ["kto", *EVALUATED, "promote"]
    assert "kto.threshold.bad 0.5 → 0.1" in said[0]


def test_variants_are_compared_as_those_of_dpo_are(tmp_path: Path) -> None:
    ran, _ = go(tmp_path, 1, "kto.variants=[{}, {threshold: 0.8}]")
    begun = ran.index("kto")
    compared = [f"answers_kto_{name}" for name in ("mean", "1", "2")]
    assert ran[begun - 1 : begun + 7] == ["dpo", "kto", "kto", "average", *compared, "choose"]


def test_status_shows_what_it_learned_from_beside_dpo(tmp_path: Path) -> None:
    go(tmp_path, 1, ON)
    shown = status(open_run(tmp_path))
    assert shown["rounds"][1]["pairs"]["kto"] == 60
    assert "4+60" in table(shown)


def test_the_plan_counts_every_scored_answer_and_what_is_given(tmp_path: Path) -> None:
    from posttrain.planning.dry_run import dry_run

    given = f"kto={{rows_from: [samples, given], given: {thumbs(tmp_path, True, False)}, num_train_epochs: 1}}"
    recipe = load("quickstart", [given, "kto.per_device_train_batch_size=100"])
    sets = Sets(train=7000, dev=900, heldout=1700, where=1000, given={"kto": [40]})
    made = amounts(dry_run(recipe, 1), sets, Shares())["1/kto"]
    assert (made.rows, made.steps) == (900 * 8 + 40, 73)
    assert made.passes == 2 * made.rows  # the reference: each answer, and each with another prompt


def test_one_threshold_is_both() -> None:
    assert Kto.model_validate({"threshold": 1}) == Kto.model_validate({"threshold": {"good": 1.0, "bad": 1.0}})
    section = Kto.model_validate({"threshold": {"good": 0.75, "bad": 0.25}})
    assert [section.label(score) for score in (0.8, 0.75, 0.5, 0.25, 0.2)] == [True, True, None, False, False]
    section = Kto.model_validate({})
    assert [section.label(score) for score in (0.5, 0.499)] == [True, False]
    assert section.threshold == Threshold(good=0.5, bad=0.5)


@pytest.mark.parametrize(
    ("section", "key", "said", "rule"),
    [
        ("{rows_from: given}", "rows_from", "no rows are given", "recipe-needs-key"),
        ("{given: {path: edited-notes.jsonl}}", "given", "nothing reads these rows", "recipe-needs-key"),
        ("{threshold: {good: 0.2, bad: 0.8}}", "threshold", "`bad` must not be above `good`", "recipe-values-clash"),
        ("{threshold: {good: 0.2}}", "threshold", "bad", "recipe-missing-key"),
        ("{threshold: high}", "threshold", "threshold", "recipe-type"),
        (
            "{per_device_train_batch_size: 1, gradient_accumulation_steps: 1}",
            "per_device_train_batch_size",
            "a step has one row",
            "recipe-values-clash",
        ),
        ("{desirable_weight: -1}", "desirable_weight", "must be at least 0", "recipe-range"),
        ("{train_sampling_strategy: random}", "train_sampling_strategy", "cannot be set here", "recipe-refused-key"),
        ("{packed: true}", "packed", "unknown key 'packed' in 'kto'", "recipe-unknown-key"),
        ("{loss_type: ipo}", "loss_type", "has no choice", "recipe-choice"),
    ],
)
def test_what_a_recipe_may_not_say(tmp_path: Path, section: str, key: str, said: str, rule: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: quickstart\nkto: {section}\n")
    with pytest.raises(RecipeError) as raised:
        load(str(tmp_path / "mine.yaml"))
    assert said in str(raised.value) and raised.value.rule == rule
    assert raised.value.line == 2 and str(raised.value.file).endswith("mine.yaml"), key


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load("quickstart", ["kto.given={path: ./nowhere.jsonl}", "kto.rows_from=given"])
