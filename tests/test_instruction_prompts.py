"""The prompts with verifiable constraints, as shipped and as data/instructions.py makes them."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.followers import follow

from posttrain.filters.contamination import overlap

ROOT = Path(__file__).parents[1]
DATA = runpy.run_path(str(ROOT / "data" / "instructions.py"))
REWARD, KINDS = DATA["REWARD"], DATA["KINDS"]
IFEVAL = ROOT.parent / "shared" / "data" / "ifeval" / "input_data.jsonl"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


SHIPPED = {split: rows(ROOT / "data" / f"instructions.{split}.jsonl") for split in DATA["SIZES"]}
ALL = [row for split in SHIPPED.values() for row in split]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    subprocess.run(
        [sys.executable, ROOT / "data" / "instructions.py", "--out", folder], check=True, capture_output=True
    )
    return folder


@pytest.mark.parametrize("split", DATA["SIZES"])
def test_the_script_makes_the_shipped_prompts(made: Path, split: str):
    name = f"instructions.{split}.jsonl"
    assert (made / name).read_bytes() == (ROOT / "data" / name).read_bytes()
    assert len(SHIPPED[split]) == DATA["SIZES"][split]


def test_options_give_other_sizes_and_another_seed_other_prompts(tmp_path: Path):
    options = ["--train", "20", "--dev", "3", "--heldout", "4", "--seed", "7", "--out", tmp_path]
    subprocess.run([sys.executable, ROOT / "data" / "instructions.py", *options], check=True, capture_output=True)
    few = rows(tmp_path / "instructions.train.jsonl")
    assert len(few) == 20 and few == DATA["prompts"]("train", 20, 7)
    assert len(rows(tmp_path / "instructions.heldout.jsonl")) == 4
    assert not {row["prompt"] for row in few} & {row["prompt"] for row in SHIPPED["train"][:20]}


def test_at_least_eight_kinds_are_held_out_four_of_them_ifevals():
    held_out = set(DATA["HELD_OUT"])
    assert len(held_out) >= 8 and held_out < set(KINDS)
    assert sum(kind.partition(":")[0] in REWARD.IFEVAL for kind in held_out) >= 4
    for split, table in SHIPPED.items():
        for row in table:
            unseen = bool(held_out & set(row["instruction_id_list"]))
            assert row["unseen_kinds"] == unseen and not (unseen and split != "heldout"), row
    assert held_out <= {kind for row in SHIPPED["heldout"] for kind in row["instruction_id_list"]}
    trained = Counter(kind for row in SHIPPED["train"] for kind in row["instruction_id_list"])
    assert set(trained) == set(KINDS) - held_out and min(trained.values()) >= 5


def task(row: dict[str, Any]) -> str:
    """What is left of a prompt without its constraints."""
    text = row["prompt"]
    for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
        for phrasing in KINDS[name].phrasings:
            text = text.replace(KINDS[name].phrase(phrasing, given), "")
    return text.strip("- \n")


def test_no_prompt_comes_twice_and_no_task_in_two_sets():
    assert len({row["prompt"] for row in ALL}) == len(ALL)
    tasks = {split: {task(row) for row in table} for split, table in SHIPPED.items()}
    assert all(DATA["split_of"](each) == split for split in tasks for each in tasks[split])
    assert not tasks["train"] & (tasks["dev"] | tasks["heldout"]) and not tasks["dev"] & tasks["heldout"]
    assert len(tasks["train"]) > 500


def test_tasks_have_no_comma_and_no_digit():
    texts = [text for pool in [*DATA["SUBJECTS"].values(), *DATA["TASKS"].values()] for text in pool]
    assert len(texts) > 200 and not [text for text in texts if re.search(r"[,\d]", text)]


def test_every_prompt_says_each_of_its_constraints():
    for row in ALL:
        assert 1 <= len(row["instruction_id_list"]) == len(row["kwargs"]) <= 3
        for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            kind = KINDS[name]
            assert kind.fault(given) is None
            assert any(kind.phrase(phrasing, given) in row["prompt"] for phrasing in kind.phrasings), row


def test_kinds_that_exclude_one_another_do_not_meet():
    names = {name for text in DATA["FAMILIES"].values() for name in text.split()}
    assert names == set(KINDS) and sum(len(text.split()) for text in DATA["FAMILIES"].values()) == len(KINDS)
    for table in (DATA["APART"], DATA["ONLY"]):
        assert {name for key, text in table.items() for name in (key, *text.split())} <= names | set(DATA["FAMILIES"])
    for row in ALL:
        for one, other in itertools.combinations(row["instruction_id_list"], 2):
            assert DATA["go_together"](one, other) and DATA["go_together"](other, one)
    assert not DATA["go_together"]("punctuation:no_comma", "detectable_format:json_format")
    assert not DATA["go_together"]("change_case:english_capital", "change_case:english_lowercase")


@pytest.mark.parametrize("seed", [DATA["SEED"], 1, 2])
def test_every_prompt_can_be_followed(seed: int):
    """An answer made by rule follows all constraints: those of the shipped prompts and of other seeds' ones."""
    for split, size in DATA["SIZES"].items():
        for row in DATA["prompts"](split, size, seed):
            answer = follow(row["instruction_id_list"], row["kwargs"])
            messages = [[{"role": "user", "content": row["prompt"]}]], [[{"role": "assistant", "content": answer}]]
            columns = [row["instruction_id_list"]], [row["kwargs"]]
            assert REWARD.all_followed(*messages, *columns) == [1.0], (row, answer)


def test_few_training_prompts_overlap_our_own_evaluation_prompts_as_the_page_says():
    evaluation = [row["prompt"] for split in ("dev", "heldout") for row in SHIPPED[split]]
    measures = [overlap(evaluation, 8, share) for share in (0.9, 0.5)]
    dropped = [sum(measure(row["prompt"]) is not None for row in SHIPPED["train"]) for measure in measures]
    page = (ROOT / "docs" / "instructions.md").read_text("utf-8")
    assert f"drops {dropped[0]} of the 2,000, the default {dropped[1]}." in page


@pytest.mark.skipif(not IFEVAL.is_file(), reason="IFEval's prompts are not here")
def test_no_prompt_of_ifeval_is_among_ours():
    """No run of eight words is shared but in the three options that IFEval's `constrained_response` is about."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}

    theirs = [runs(row["prompt"]) for row in rows(IFEVAL)]
    of_theirs = set().union(*theirs)
    shared = Counter(run for row in ALL for run in runs(row["prompt"]) & of_theirs)
    options = "my answer is yes my answer is no {}my answer is maybe"
    assert set(shared) <= runs(options.format("")) | runs(options.format("or ")), shared.most_common(5)
    overlaps = overlap([row["prompt"] for row in rows(IFEVAL)], 8, 0.5)
    assert not any(overlaps(row["prompt"]) for row in ALL)


def test_training_prompts_alone_have_hints_and_whoever_says_one_follows_nothing() -> None:
    """A hint is no answer: with its own text nothing is gained, also where that happens to follow the constraints."""
    hinted = [row for row in SHIPPED["train"] if row["hint"]]
    assert 0 < len(hinted) < len(SHIPPED["train"])
    assert not any("hint" in row for split in ("dev", "heldout") for row in SHIPPED[split])
    for row in hinted:
        asked, said = [[{"content": row["prompt"]}]], [[{"content": row["hint"]}]]
        one = {"instruction_id_list": [row["instruction_id_list"]], "kwargs": [row["kwargs"]]}
        assert REWARD.share_followed(asked, said, **one, hint=[row["hint"]]) == [0.0], row["hint"]
