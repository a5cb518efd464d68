"""Policies that were made to depend on how a question is put, and what is refused before anything is sampled."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.by_heart import Text, taught
from support.interrupted import BASE

from posttrain.data.choices import Question
from posttrain.errors import DataError, InputError
from posttrain.evaluation.label_variants import Variant
from posttrain.job import Job
from posttrain.loop import play
from posttrain.planning.dry_run import DryRunner
from posttrain.recipe.load import load
from posttrain.report import plots
from posttrain.report.charts import Spreads
from posttrain.report.figures import benchmarks
from posttrain.report.reading import Round
from posttrain.stages import label_variants, label_variants_check

ANSWERS = [0, 0, 0, 1, 1, 2, 3, 3]
QUESTIONS = [
    {"question": f"Who has {at} apples?", "choices": ["Mia", "Tom", "Ann", "Leo"], "answer": answer}
    for at, answer in enumerate(ANSWERS)
]


def job(model: Path, folder: Path, questions: list[dict[str, Any]] = QUESTIONS, **given: Any) -> Job:
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions))
    engine = {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 4000}
    section = {"path": str(folder / "questions.jsonl"), "examples": 0, **given}
    return Job({"label_variants": section, "engine": engine}, {"policy": model}, folder, folder / "scratch", 0)


def policy(folder: Path, shifts: range, answer: Any) -> Path:
    """The shipped base, taught the usual labels in these orders. `answer`: of a question as it is put."""
    questions = [Question(row["question"], tuple(row["choices"]), row["answer"]) for row in QUESTIONS]

    def texts(tokenizer: Any) -> list[Text]:
        made = []
        for variant in (Variant("order", "", shift=shift) for shift in shifts):
            for text, question in zip(variant.prompts([], questions), questions, strict=True):
                before = tokenizer.encode(text)
                whole = tokenizer.encode(f"{text} {variant.label(answer(variant.put(question)))}")
                made.append((before, whole[len(before) :]))
        return made

    return taught(folder, texts, 160 // len(shifts))


@pytest.mark.slow
def test_a_policy_taught_to_take_the_first_label_shows_it_in_the_orders(tmp_path: Path) -> None:
    found = label_variants.run(job(policy(tmp_path / "policy", range(4), lambda question: 0), tmp_path))
    order = found["families"]["order"]
    assert (order["mean"], order["spread"]) == (0.25, 0.25)  # by hand: 3, 2, 1 and 2 of 8
    assert order["worst"] == {"variant": "moved by 2", "value": 0.125}
    assert all(one["chosen"][0] == 1.0 for one in found["variants"] if one["family"] == "order")


@pytest.mark.slow
def test_a_policy_that_knows_the_answers_by_one_set_of_labels_shows_it_in_the_labels(tmp_path: Path) -> None:
    found = label_variants.run(job(policy(tmp_path / "policy", range(1), lambda one: one.answer), tmp_path))
    by_name = {one["variant"]: one["accuracy"]["value"] for one in found["variants"] if one["family"] == "labels"}
    assert by_name["A."] == 1.0
    labels = found["families"]["labels"]
    assert labels["spread"] == 1.0 - min(by_name.values()) >= 0.5
    assert labels["worst"]["value"] == min(by_name.values()) and labels["worst"]["variant"] != "A."


def test_examples_stand_before_and_are_not_asked(tmp_path: Path) -> None:
    found = label_variants.run(job(BASE, tmp_path, examples=4, rows=3))
    assert found["questions"] == 3
    assert {one["family"] for one in found["variants"]} == {"labels", "examples", "order", "format"}
    assert found["left_out"] == []


class Unknown:
    """A tokenizer that knows no rare letter, begins a text by 1 and ends it by 2."""

    bos_token_id = 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [ord(letter) if ord(letter) < 128 else 3 for letter in text]
        return [1, *ids, 2] if add_special_tokens else ids


def test_labels_that_a_tokenizer_does_not_tell_apart_are_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_variants.AutoTokenizer, "from_pretrained", lambda path: Unknown())
    found = label_variants_check.run(job(BASE, tmp_path))
    assert found["fallback"][0] == "label variants leave out œ § з ü: the tokenizer does not tell its labels apart"


class Joining(Unknown):
    """Makes one token of a colon and a digit after it, so that the text's own last token is another one."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return super().encode(re.sub(r": (?=\d$)", "~", text), add_special_tokens)


def test_a_label_that_changes_the_text_before_it_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_variants.AutoTokenizer, "from_pretrained", lambda path: Joining())
    assert "leave out 1.:" in label_variants_check.run(job(BASE, tmp_path))["fallback"][0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "no text in a column 'question'"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "a list of 2 to 8 texts"),
        ({"question": "q", "choices": "ab", "answer": 0}, "a list of 2 to 8 texts"),
        ({"question": "q", "choices": ["a", "b", "a "], "answer": 0}, "two of its 'choices' are the same"),
        ({"question": "q", "choices": ["a", "b"]}, "'answer' must be one of 0 to 1, or A to B, not None"),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "'answer' must be one of 0 to 1, or A to B"),
    ],
)
def test_what_is_no_question_is_named_by_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as said:
        label_variants_check.run(job(BASE, tmp_path, [QUESTIONS[0], row]))
    assert (said.value.line, said.value.rule) == (2, "data-question")


def test_too_few_and_too_long_ones_are_refused_and_few_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none is left to ask"):
        label_variants_check.run(job(BASE, tmp_path, QUESTIONS[:4], examples=4))
    long = {**QUESTIONS[0], "question": "apples " * 3000}
    with pytest.raises(InputError, match=r"question 2 of those asked has .* the model's context") as said:
        label_variants_check.run(job(BASE, tmp_path, [QUESTIONS[0], long]))
    assert said.value.rule == "variants-do-not-fit"
    found = label_variants_check.run(job(BASE, tmp_path))
    assert "intervals are wide" in found["fallback"][0]
    ways = len(label_variants.run(job(BASE, tmp_path))["variants"])
    assert found["asked"]["texts"] == ways * len(QUESTIONS) * 4 and found["asked"]["answers"] == []
    assert ways * len(QUESTIONS) * 5 < found["asked"]["read"] < ways * len(QUESTIONS) * 100


def test_a_run_evaluates_the_base_and_each_round_and_nothing_waits_for_it(tmp_path: Path) -> None:
    path = job(BASE, tmp_path).config["label_variants"]["path"]
    runner = DryRunner()
    play(load("quickstart", [f"evaluate.label_variants={{path: {path}}}"]), runner, 2)
    made = [planned for planned in runner.stages if planned.stage == "label_variants"]
    assert [planned.number for planned in made] == [0, 1, 2]
    keys = {planned.key for planned in made}
    assert not any(keys & {*planned.waits, *planned.inputs.values()} for planned in runner.stages)


def test_the_report_has_one_plot_of_the_base_and_the_last_round(tmp_path: Path) -> None:
    found = label_variants.run(job(BASE, tmp_path))
    manifest = {"stage": "label_variants", "metrics": found, "seconds": 1.0}
    rounds = [Round(number, True, None, {"label_variants": "key"}, {"label_variants": manifest}) for number in range(3)]
    (chart,) = benchmarks(rounds)
    assert isinstance(chart, Spreads) and chart.legend == ["the base", "round 2"]
    assert plots.draw(chart).startswith("<svg")
