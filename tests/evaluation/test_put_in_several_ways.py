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


def test_no_two_variants_of_a_family_put_the_same() -> None:
    examples = [Question(f"{at}?", ("a", "b", "c", "d"), 0) for at in range(4)]
    question = [Question("q?", ("e", "f", "g", "h"), 2)]
    for family in ("labels", "examples", "order", "format"):
        texts = [list(one.prompts(examples, question)) for one in variants(4, 4) if one.family == family]
        assert len(texts) == len({text for (text,) in texts}) >= 4
    assert {one.family for one in variants(4, 0)} == {"labels", "order", "format"}


def test_a_policy_that_always_takes_the_first_label_is_found_out() -> None:
    answers = [0, 0, 0, 1, 1, 2, 3, 3]
    questions = [Question("q", ("a", "b", "c", "d"), answer) for answer in answers]
    found = figures({one: [0] * 8 for one in variants(4, 0) if one.family == "order"}, questions)
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
    order = [one for one in variants(3, 0) if one.family == "order"]
    found = figures({one: [one.put(question).answer for question in questions] for one in order}, questions)
    assert found["families"]["order"]["mean"] == 1.0 and found["families"]["order"]["spread"] == 0.0


@pytest.mark.parametrize("place", [0, 2])
def test_fewer_choices_than_others_have(place: int) -> None:
    few = Question("yes?", ("yes", "no"), 0)
    assert Variant("order", "", shift=3).put(few) == Question("yes?", ("no", "yes"), 1)
    assert f"Answer: {'AB'[min(place, 1)]}" in _put(
        Variant("examples", "", examples="the last two" if place else "all the same"), few
    )
