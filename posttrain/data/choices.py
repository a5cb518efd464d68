"""Multiple-choice questions from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from posttrain.config import PromptSet
from posttrain.data.sources import Source

LETTERS = "ABCDEFGH"
MOST_CHOICES = len(LETTERS)


@dataclass(frozen=True)
class Question:
    """`answer`: the place of the right one among the choices."""

    text: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: str, most: int, where: str) -> list[Question]:
    """The first questions of a file (JSONL or Parquet) with the columns question, choices (a list of 2 to 8 texts)
    and answer (a place from 0, or a letter). `most`: how many; `where`: the recipe's section, for messages.

    Raises DataError at the line of one that is none.
    """
    source = Source(PromptSet(path=path), where)
    return [_question(source, line, row) for line, row in islice(source.rows(), most)]


def _question(source: Source, line: int, row: Mapping[str, Any]) -> Question:
    text, choices, answer = (row.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(text, str) or not text.strip():
        hint = f"it has {', '.join(map(repr, row))}"
        raise source.error(line, "no text in a column 'question'", hint, rule="data-question")
    texts = choices if isinstance(choices, list) else []
    if not 2 <= len(texts) <= MOST_CHOICES or not all(isinstance(one, str) and one.strip() for one in texts):
        raise source.error(line, f"'choices' must be a list of 2 to {MOST_CHOICES} texts", rule="data-question")
    if len({one.strip() for one in texts}) < len(texts):
        raise source.error(line, "two of its 'choices' are the same", rule="data-question")
    place = LETTERS.find(answer.strip().upper()) if isinstance(answer, str) and len(answer.strip()) == 1 else answer
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(texts):
        said = f"'answer' must be one of 0 to {len(texts) - 1}, or A to {LETTERS[len(texts) - 1]}, not {answer!r}"
        hint = None if answer is not None else "a set without right answers measures nothing"
        raise source.error(line, said, hint, rule="data-question")
    return Question(text.strip(), tuple(one.strip() for one in texts), place)
