"""Tokenizer, template and special ids stand in every manifest, and a stage whose inputs disagree stops."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.interrupted import BASE, Training
from support.planned import planned
from support.tiny_models import tokenizer
from transformers import AutoTokenizer

from posttrain.errors import StageError
from posttrain.execution import tokenizer_check
from posttrain.execution.launcher import execute
from posttrain.storage import store
from posttrain.storage.files import sealed, write_durably
from posttrain.storage.store import Store


def saved(folder: Path, change: Callable[[Any], None] = lambda tokenizer: None) -> Path:
    made = tokenizer()
    change(made)
    made.save_pretrained(folder)
    return folder


def another_template(made: Any) -> None:
    made.chat_template += " "


def another_end(made: Any) -> None:
    made.eos_token = "<pad>"


def one_token_more(made: Any) -> None:
    made.add_tokens(["<tool>"])


def test_saving_and_padding_change_nothing(tmp_path: Path) -> None:
    def padded(made: Any) -> None:
        made.pad_token = "</s>"

    one = tokenizer_check.fingerprint(saved(tmp_path / "one"))
    assert one is not None and one["special"] == {"bos": 1, "eos": 2}
    assert tokenizer_check.fingerprint(saved(tmp_path / "two", padded)) == one
    loaded = AutoTokenizer.from_pretrained(tmp_path / "two")
    loaded.save_pretrained(tmp_path / "three")
    assert tokenizer_check.fingerprint(tmp_path / "three") == one
    assert tokenizer_check.fingerprint(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [(another_template, "chat template"), (another_end, "special ids"), (one_token_more, "vocabulary")],
)
def test_what_differs_is_named_with_both(tmp_path: Path, change: Callable[[Any], None], told: str) -> None:
    inputs = {"model": saved(tmp_path / "sft-1"), "samples": tmp_path, "policy": saved(tmp_path / "dpo-2", change)}
    found = rf"model \(sft-1\) and policy \(dpo-2\) have different tokenizers: {told} differ"
    with pytest.raises(StageError, match=found):
        tokenizer_check.of_inputs(inputs)
    assert tokenizer_check.of_inputs({**inputs, "policy": inputs["model"]}) == tokenizer_check.fingerprint(
        inputs["model"]
    )
    assert tokenizer_check.of_inputs({"model": inputs["model"], "reference": inputs["policy"]}) is not None


def test_a_stage_writes_it_down_and_stops_where_a_table_was_made_with_other_tokens(tmp_path: Path) -> None:
    training = Training("sft", tmp_path, max_steps=1)
    kept = training.inputs["kept"]
    run = Store(tmp_path / "run")
    with run.session():
        folder = run.begin("sft-1", {**planned(training).stage, "key": "sft-1"})
        execute(folder, 1)
    tokens = run.manifest("sft-1")["tokens"]
    assert tokens == tokenizer_check.fingerprint(BASE) == tokenizer_check.fingerprint(run.path("sft-1"))
    made = Path(shutil.copytree(kept, run.artifacts / "filters-2"))  # a table whose manifest tells of other tokens
    manifest = {"files": {}, "tokens": {**tokens, "chat_template": "another"}}
    write_durably(made / store.MANIFEST, sealed(manifest))
    training.inputs["kept"] = made
    found = r"model \(tiny-base\) and kept \(filters-2\) have different tokenizers"
    with run.session(), pytest.raises(StageError, match=found):
        execute(run.begin("sft-3", {**planned(training).stage, "key": "sft-3"}), 1)
    assert not run.has("sft-3")
