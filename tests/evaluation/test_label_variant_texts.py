"""Multiple-choice questions put in several ways: what is put, and what is said of the answers, computed by hand."""

from __future__ import annotations

import pytest

from posttrain.data.choices import Question
from posttrain.evaluation.label_variants import Variant, figures, variants

EXAMPLE = Question("2 + 2?", ("3", "4", "5"), 1)
PLANTS = Question("A plant?", ("oak", "cat", "dog"), 0)


def _put(variant: Variant, *examples: Question) -> str:
    (text,) = variant.prompts(examples, [PLANTS])
    return text


def test_the_usual_way_and_each_other_one() -> None:
    usual = "2 + 2?\nA. 4\nB. 3\nC. 5\nAnswer: A\n\nA plant?\nA. oak\nB. cat\nC. dog\nAnswer:"
    assert _put(Variant("labels", "A."), EXAMPLE) == usual
    symbols = "A plant?\n$. oak\n&. cat\n#. dog\nAnswer:"
    assert _put(Variant("labels", "", labels="$ & # @")) == symbols
    assert _put(Variant("order", "", shift=1)) == "A plant?\nA. dog\nB. oak\nC. cat\nAnswer:"
    asked = "Choose the right answer to each question.\n\nQuestion: A plant?\nA. oak\nB. cat\nC. dog\nAnswer:"
    assert _put(Variant("format", "", format="asked")) == asked
    last = "2 + 2?\nA. 3\nB. 5\nC. 4\nAnswer: C\n\nA plant?\nA. oak\nB. cat\nC. dog\nAnswer:"
    assert _put(Variant("examples", "", examples="the last two"), EXAMPLE) == last


@pytest.mark.parametrize("count", range(9))
@pytest.mark.parametrize("choices", [2, 3, 4, 8])
def test_no_two_variants_of_a_family_put_the_same(count: int, choices: int) -> None:
    given = tuple("abcdefgh"[:choices])
    examples = [Question(f"{at}?", given, 0) for at in range(count)]
    question = [Question("q?", given, 1)]
    put: dict[str, list[str]] = {}
    for one in variants(choices, examples):
        put.setdefault(one.family, []).extend(one.prompts(examples, question))
    assert all(len(texts) == len(set(texts)) > 1 for texts in put.values())
    assert ("examples" in put) == (count > 1 or (count == 1 and choices > 2))  # one example can stand at two labels
    assert len(put["labels"]) == len(put["format"]) == 5 and len(put["order"]) == choices


def test_a_policy_that_always_takes_the_first_label_is_found_out() -> None:
    answers = [0, 0, 0, 1, 1, 2, 3, 3]
    questions = [Question("q", ("a", "b", "c", "d"), answer) for answer in answers]
    found = figures({one: [0] * 8 for one in variants(4, []) if one.family == "order"}, questions)
    # Moved by 0, 1, 2, 3 places, the right answer stands first in 3, 2, 1 and 2 of 8 questions.
    assert [one["accuracy"]["value"] for one in found["variants"]] == [3 / 8, 2 / 8, 1 / 8, 2 / 8]
    assert found["families"]["order"] == {
        "mean": 0.25,
        "spread": 0.25,
        "worst": {"variant": "moved by 2", "value": 0.125},
    }
    assert found["variants"][1]["chosen"] == [1.0, 0.0, 0.0, 0.0]
    assert found["variants"][1]["right"] == [2 / 8, 3 / 8, 2 / 8, 1 / 8]


def test_a_policy_that_knows_the_answers_has_no_spread_whatever_the_order() -> None:
    questions = [Question("q", ("a", "b", "c"), answer) for answer in (0, 1, 2, 0)]
    order = [one for one in variants(3, []) if one.family == "order"]
    found = figures({one: [one.put(question).answer for question in questions] for one in order}, questions)
    assert found["families"]["order"]["mean"] == 1.0 and found["families"]["order"]["spread"] == 0.0


def test_fewer_choices_than_others_have() -> None:
    few = Question("yes?", ("yes", "no"), 0)
    assert Variant("order", "", shift=3).put(few) == Question("yes?", ("no", "yes"), 1)
    assert "A. no\nB. yes\nAnswer: B" in _put(Variant("examples", ""), few, few)
