"""Where the steps of an answer end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from support.interrupted import BASE
from support.tiny_models import tokenizer
from transformers import AutoTokenizer

from posttrain.data.steps import tokens_of_steps, where_steps_end
from posttrain.engines.detokenize import DECODE

LINES = ["\n"]


def steps(text: str, ends: list[str]) -> list[str]:
    found = where_steps_end(text, ends)
    return [text[start:end] for start, end in zip([0, *found], found, strict=False)]


@pytest.mark.parametrize(
    ("text", "ends", "expected"),
    [
        ("2 + 3 = 5\n5 * 2 = 10\nAnswer: 10", LINES, ["2 + 3 = 5\n", "5 * 2 = 10\n", "Answer: 10"]),
        ("one\n\ntwo\n", LINES, ["one\n\n", "two\n"]),
        ("one\n---\ntwo", LINES, ["one\n---\n", "two"]),  # a line without a word
        ("\n\none", LINES, ["\n\none"]),
        ("So 3. So 4.", [". ", ";"], ["So 3. ", "So 4."]),
        ("So 3. So 4.", [".", ". "], ["So 3. ", "So 4."]),
        ("1.5 (half)", ["("], ["1.5 (", "half)"]),  # texts, not patterns
        ("no end", LINES, ["no end"]),
        ("one\n___\ntwo", LINES, ["one\n___\n", "two"]),
        ("\n --- \n", LINES, []),
        ("", LINES, []),
    ],
)
def test_a_step_ends_where_its_texts_do(text: str, ends: list[str], expected: list[str]) -> None:
    assert steps(text, ends) == expected
    found = where_steps_end(text, ends)
    assert [text[:end] for end in found] == ["".join(expected[: at + 1]) for at in range(len(expected))]


def pieces(*texts: str) -> tuple[list[int], list[str]]:
    return list(range(len(texts))), list(texts)


def test_tokens_are_counted_up_to_the_one_in_which_a_step_ends() -> None:
    ids, texts = pieces("on", "e", "\n", "tw", "o\nth", "ree", "")

    def decode(some: Sequence[int]) -> str:
        return "".join(texts[one] for one in some)

    assert tokens_of_steps(ids, decode, LINES) == [3, 2, 1]  # "th" of the third step counts to the second
    assert tokens_of_steps([6, 6], decode, LINES) == []
    ids, texts = pieces("a\nb\nc", "d")
    assert tokens_of_steps(ids, decode, LINES) == [1, 0, 1]


def test_steps_of_a_tokenizer_make_up_the_answer_but_for_its_end() -> None:
    real: Any = tokenizer()
    text = "Tom has 3 apples.\nHe buys 2.\nAnswer: 5"
    ids = [*real.encode(text, add_special_tokens=False), real.eos_token_id]
    sizes = tokens_of_steps(ids, lambda some: real.decode(some, skip_special_tokens=True), LINES)
    assert len(sizes) == 3 and sum(sizes) == len(ids) - 1
    start = 0
    for size, step in zip(sizes, steps(text, LINES), strict=True):
        assert real.decode(ids[start : start + size], skip_special_tokens=True).strip() == step.strip()
        start += size


@pytest.mark.parametrize("text", ["ok 🙂\nso 5", "第一步。\n第二步。\n答案 5", "naïve\n\n½ of it"])
def test_a_character_of_several_tokens_is_in_one_step(text: str) -> None:
    real: Any = AutoTokenizer.from_pretrained(BASE)

    def decode(some: Sequence[int]) -> str:
        return real.decode(some, **DECODE)

    ids = real.encode(text, add_special_tokens=False)
    sizes, start = tokens_of_steps(ids, decode, LINES), 0
    assert sum(sizes) == len(ids)
    for size, step in zip(sizes, steps(text, LINES), strict=True):
        assert decode(ids[start : start + size]) == step
        start += size


def test_an_answer_cut_within_a_character_has_all_of_its_tokens() -> None:
    real: Any = AutoTokenizer.from_pretrained(BASE)
    ids = real.encode("so 🙂", add_special_tokens=False)[:-1]
    assert tokens_of_steps(ids, lambda some: real.decode(some, **DECODE), LINES) == [len(ids)]
