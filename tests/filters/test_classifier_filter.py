"""The classifier filter, beside transformers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from support.tiny_models import reward_model, tokenizer
from transformers import AutoModelForSequenceClassification, pipeline

from posttrain import filters
from posttrain.errors import ModelError
from posttrain.filters import FilterContext

LABELS = {0: "fine", 1: "toxic", 2: "nsfw"}
TEXTS = ["Mia has 7 apples.", "How many?", "12", "Zzz! §$%& qqq", "She buys 5 more, so she has 12 apples."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three labels, and one (`several/`) whose labels are independent."""
    path = tmp_path_factory.mktemp("classifier")
    for name, problem in ((".", "single_label_classification"), ("several", "multi_label_classification")):
        labels = {"num_labels": 3, "id2label": LABELS, "label2id": {name: at for at, name in LABELS.items()}}
        reward_model("llama", **labels, problem_type=problem).save_pretrained(path / name)
        tokenizer().save_pretrained(path / name)
    return path


def expected(folder: Path, text: str, label: str = "toxic") -> float:
    several = folder.name == "several"
    classify: Any = pipeline("text-classification", str(folder), device="cpu", top_k=None)
    (found,) = classify([text], function_to_apply="sigmoid" if several else "softmax")
    return next(one["score"] for one in found if one["label"] == label)


def table(prompts: list[str], answers: list[str]) -> list[pa.RecordBatch]:
    return pa.table({"prompt": prompts, "completion": answers}).to_batches()


def filter_rows(folder: Path, prompts: list[str], answers: list[str], **keys: object) -> list[dict]:
    """The rows that are dropped."""
    entry = {"use": "classifier", "model": str(folder), "label": "toxic", **keys}
    run = filters.run(table(prompts, answers), filters.parse([entry]), FilterContext())
    return [row for part in run for row in part.dropped.to_pylist()]


@pytest.mark.parametrize("name", [".", "several"])
def test_the_figure_is_the_labels_probability(folder: Path, name: str) -> None:
    dropped = filter_rows(folder / name, ["p"] * len(TEXTS), TEXTS, threshold=1e-9, on="answer")
    assert [row["completion"] for row in dropped] == TEXTS
    wanted = [expected(folder / name, text) for text in TEXTS]
    assert [row["figure"] for row in dropped] == pytest.approx(wanted, abs=1e-5)
    assert {row["reason"] for row in dropped} == {"answer is toxic"}


def test_from_the_threshold_on_a_row_goes(folder: Path) -> None:
    chances = sorted((expected(folder, text), text) for text in TEXTS)
    (low, _), (high, text) = chances[-2:]
    dropped = filter_rows(folder, ["p"] * len(TEXTS), TEXTS, threshold=(low + high) / 2, on="answer")
    assert [row["completion"] for row in dropped] == [text]


def test_prompts_and_answers_are_read_apart(folder: Path) -> None:
    chances = sorted((expected(folder, text), text) for text in TEXTS)
    fine, worst = chances[0][1], chances[-1][1]
    threshold = (chances[-2][0] + chances[-1][0]) / 2
    prompts, answers = [fine, worst, fine], [fine, fine, worst]
    assert [row["reason"] for row in filter_rows(folder, prompts, answers, threshold=threshold)] == [
        "prompt is toxic",
        "answer is toxic",
    ]
    assert len(filter_rows(folder, prompts, answers, threshold=threshold, on="prompt")) == 1


def test_a_long_text_is_read_window_by_window_to_its_end(folder: Path) -> None:
    """Windows are of 94 tokens here (the context less two), each begins 71 after the one before."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    text = " ".join(TEXTS * 6)
    ids = tokenizer().encode(text)
    starts = range(0, len(ids) - 23, 94 - 23)
    assert len(starts) > 3
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([ids[start : start + 94]])).logits for start in starts])
    (dropped,) = filter_rows(folder, ["p"], [text], threshold=1e-9, on="answer")
    assert dropped["figure"] == pytest.approx(logits.softmax(-1)[:, 1].max().item(), abs=1e-5)


def test_empty_texts_and_none(folder: Path) -> None:
    assert filter_rows(folder, ["", ""], ["", ""], threshold=0.999) == []
    assert filter_rows(folder, [], []) == []


def test_an_unknown_label_lists_the_known(folder: Path) -> None:
    with pytest.raises(ModelError, match="no label 'toxik'") as e:
        filter_rows(folder, ["p"], ["a"], label="toxik")
    assert e.value.hint == "labels: fine, toxic, nsfw"


@pytest.mark.parametrize("model", ["owner/no-such-model", "./no-such-folder"])
def test_a_model_that_cannot_be_had_offline_is_named(model: str) -> None:
    (one,) = filters.parse([{"use": "classifier", "model": model, "label": "toxic"}])
    with pytest.raises(ModelError, match="no-such-") as e:
        one.external_hashes()
    assert e.value.hint is not None and "works without network" in e.value.hint


def test_other_weights_are_another_key(folder: Path) -> None:
    one, other = filters.parse(
        [{"use": "classifier", "model": str(path), "label": "toxic"} for path in (folder, folder / "several")]
    )
    assert list(one.external_hashes().values()) != list(other.external_hashes().values())
