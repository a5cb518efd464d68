"""Multiple-choice questions put in several ways: labels, examples, order of the answers, words around them. Pure.

The kinds of variants are those of Llama 3's report (section 5.1.3). A policy answers by the label that is likeliest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.data.choices import LETTERS, MOST_CHOICES, Question
from posttrain.evaluation import statistics

# What stands above all questions, and before each; the first is the usual one.
_FORMATS = {
    "bare": ("", ""),
    "named": ("", "Question: "),
    "asked": ("Choose the right answer to each question.", "Question: "),
    "asked for a label": ("Answer each question with the label of its right answer, and nothing else.", "Question: "),
    "expert": ("You know this subject better than anybody. Choose the best answer.", "Question: "),
}
_LABELS = {
    "A.": (LETTERS, "."),
    "A)": (LETTERS, ")"),
    "1.": ("12345678", "."),
    "$ & # @": ("$&#@%*+=", "."),  # without an order
    "œ § з ü": ("œ§зüßþłж", "."),  # rare ones, without an order
}
# At which labels the right answers of the examples stand, over and over.
_EXAMPLES = {
    "all different": tuple(range(MOST_CHOICES)),
    "all the same": (0,),
    "the first two": (0, 0, 1, 1),
    "the last two": (2, 2, 3, 3),
}


@dataclass(frozen=True)
class Variant:
    """One way to put all questions. `shift`: by how many places each choice is moved on, the last ones to the front."""

    family: str
    name: str
    labels: str = "A."
    examples: str = "all different"
    shift: int = 0
    format: str = "bare"

    def put(self, question: Question) -> Question:
        """The question as it stands in the text."""
        count = len(question.choices)
        moved = [question.choices[(at - self.shift) % count] for at in range(count)]
        return Question(question.text, tuple(moved), (question.answer + self.shift) % count)

    def prompts(self, examples: Sequence[Question], questions: Sequence[Question]) -> Iterator[str]:
        """The text before the label of each question's answer."""
        heading, _ = _FORMATS[self.format]
        given = [_with_answer_at(*one) for one in zip(examples, _places(self.examples, examples), strict=True)]
        shown = [f"{self._asked(one)} {self.label(one.answer)}" for one in given]
        for question in questions:
            yield "\n\n".join([*([heading] if heading else []), *shown, self._asked(self.put(question))])

    def label(self, place: int) -> str:
        return _LABELS[self.labels][0][place]

    def _asked(self, question: Question) -> str:
        mark, before = _LABELS[self.labels][1], _FORMATS[self.format][1]
        choices = [f"{self.label(at)}{mark} {choice}" for at, choice in enumerate(question.choices)]
        return "\n".join([f"{before}{question.text}", *choices, "Answer:"])


def _places(kind: str, examples: Sequence[Question]) -> list[int]:
    """Where the right answer of each example stands, among the labels that it has."""
    places = _EXAMPLES[kind]
    return [places[at % len(places)] % len(one.choices) for at, one in enumerate(examples)]


def _with_answer_at(question: Question, place: int) -> Question:
    """The same question with its right answer at this place."""
    choices = [*question.choices]
    choices[place], choices[question.answer] = choices[question.answer], choices[place]
    return Question(question.text, tuple(choices), place)


def variants(choices: int, examples: Sequence[Question]) -> list[Variant]:
    """All of them, family by family; each family begins with the usual way, and none of it puts the same twice.
    choices: the most that a question has."""
    usual = Variant("", "")
    found = [replace(usual, family="labels", name=name, labels=name) for name in _LABELS]
    by_places: dict[tuple[int, ...], str] = {}
    for name in _EXAMPLES:
        by_places.setdefault(tuple(_places(name, examples)), name)
    if len(by_places) > 1:
        found += [replace(usual, family="examples", name=name, examples=name) for name in by_places.values()]
    found += [replace(usual, family="order", name=f"moved by {at}", shift=at) for at in range(choices)]
    return found + [replace(usual, family="format", name=name, format=name) for name in _FORMATS]


def figures(chosen: Mapping[Variant, Sequence[int]], questions: Sequence[Question]) -> dict[str, Any]:
    """What the answers to all variants say. chosen: by variant, the place of the label chosen at each question.

    Returns `variants`, for each its `accuracy` with an interval and by place how often it was `chosen` and `right`
    (shares of the questions), and `families`: the `mean` accuracy, the `spread` between its best and its worst variant,
    and the `worst`.
    """
    places = range(max(len(question.choices) for question in questions))
    rows = []
    for variant, answers in chosen.items():
        right = [variant.put(question).answer for question in questions]
        rows.append(
            {
                "family": variant.family,
                "variant": variant.name,
                "accuracy": statistics.proportion([float(a == b) for a, b in zip(answers, right, strict=True)]),
                "chosen": [sum(answer == place for answer in answers) / len(questions) for place in places],
                "right": [sum(answer == place for answer in right) / len(questions) for place in places],
            }
        )
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    return {"variants": rows, "families": {name: _family(of) for name, of in families.items()}}


def _family(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [row["accuracy"]["value"] for row in rows]
    worst = min(rows, key=lambda row: row["accuracy"]["value"])
    return {
        "mean": sum(values) / len(values),
        "spread": max(values) - min(values),
        "worst": {"variant": worst["variant"], "value": worst["accuracy"]["value"]},
    }
