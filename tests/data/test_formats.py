"""Rows of the ecosystem's formats and layouts: what prompt and which answers are read of each. Rows are our own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.config import PromptSet
from posttrain.data.formats import parsed, prompt_of, ranking_of
from posttrain.data.load import content_hash, read_labelled, read_preferences, read_prompts
from posttrain.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(folder: Path, rows: list[dict[str, Any]], **options: Any) -> PromptSet:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return PromptSet.model_validate({"path": str(path), **options})


def binarized(ask: str, good: str, bad: str, score: float) -> dict[str, Any]:
    """A row as UltraFeedback's binarized form has it."""
    return {
        "prompt": ask,
        "prompt_id": f"{ask}-id",
        "chosen": [user(ask), assistant(good)],
        "rejected": [user(ask), assistant(bad)],
        "messages": [user(ask), assistant(good)],
        "score_chosen": score,
        "score_rejected": 1.0,
    }


ULTRAFEEDBACK = [
    binarized("Name a red fruit.", "A cherry.", "A banana.", 9.0),
    binarized("Name a red fruit.", "An apple.", "A plum? I am not sure.", 7.5),
    binarized("Say hello.", "Hello!", "No.", 8.0),
]
SCORES = {"score_chosen": None, "score_rejected": None}


def test_ultrafeedback_as_pairs(tmp_path: Path) -> None:
    first, second, _ = read_preferences(write(tmp_path, ULTRAFEEDBACK))
    assert first.prompt.id == second.prompt.id
    assert (first.chosen, first.rejected) == ((assistant("A cherry."),), (assistant("A banana."),))
    assert first.prompt.columns["score_chosen"] == 9.0


def test_ultrafeedback_as_prompts(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"another 'score_chosen' .data-contradiction.\n.*prompts\.train\.columns: \{score_chosen: null\}",
    ):
        read_prompts(write(tmp_path, ULTRAFEEDBACK))
    counts: Counter[str] = Counter()
    prompts = read_prompts(write(tmp_path, ULTRAFEEDBACK, columns=SCORES), counts=counts)
    assert [prompt.messages for prompt in prompts] == [(user("Name a red fruit."),), (user("Say hello."),)]
    assert prompts[0].columns == {"prompt_id": "Name a red fruit.-id"}
    assert counts == {"duplicate": 1}


def test_the_raw_ultrafeedback_as_prompts(tmp_path: Path) -> None:
    row = {"instruction": "Say hello.", "completions": [{"response": "Hello!", "overall_score": 8.0}], "source": "ours"}
    with pytest.raises(DataError, match=r"called 'completions'(.|\n)*\{completions: null\}"):
        read_prompts(write(tmp_path, [row], columns={"prompt": "instruction"}))
    (prompt,) = read_prompts(write(tmp_path, [row], columns={"prompt": "instruction", "completions": None}))
    assert (prompt.messages, prompt.columns) == ((user("Say hello."),), {"source": "ours"})


START = "\n\nHuman: Where is the key?\n\nAssistant: Which key?\n\nHuman: The one\nof the door."
HH = {"chosen": f"{START}\n\nAssistant: Under the mat.", "rejected": f"{START}\n\nAssistant: I will not say."}
TALK = [user("Where is the key?"), assistant("Which key?"), user("The one\nof the door.")]


def test_hh_rlhf_as_pairs_and_as_prompts(tmp_path: Path) -> None:
    (pair,) = read_preferences(write(tmp_path, [HH]))
    assert list(pair.prompt.messages) == TALK
    assert (pair.chosen, pair.rejected) == ((assistant("Under the mat."),), (assistant("I will not say."),))
    (prompt,) = read_prompts(write(tmp_path, [HH]))
    assert (list(prompt.messages), prompt.columns) == (TALK, {})


def test_dialogues_that_part_earlier_end_unanswered_or_say_two_things_in_a_row() -> None:
    early = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant: Bye!",
        "rejected": "\n\nHuman: Hi\n\nAssistant: What?\n\nHuman: Oh\n\nAssistant: Well.",
    }
    prompt, answers = ranking_of(early)
    assert prompt == [user("Hi")]
    assert answers["rejected"] == [assistant("What?"), user("Oh"), assistant("Well.")]
    unanswered = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant:"}
    assert ranking_of(unanswered)[1]["rejected"] == [assistant("")]
    assert parsed("prompt", "\n\nHuman: a\n\nHuman: b\n\nAssistant:") == [user("a\n\nb")]


def test_implicit_prompts_are_those_that_trl_extracts() -> None:
    from trl.data_utils import extract_prompt

    talks: dict[str, Any] = {"chosen": [*TALK, assistant("Here.")], "rejected": [*TALK, assistant("Gone.")]}
    texts: dict[str, Any] = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    for row in (talks, texts):
        theirs: dict[str, Any] = extract_prompt(row)
        prompt, answers = ranking_of(row)
        assert prompt == (theirs["prompt"] if row is talks else [user(theirs["prompt"])])
        for side in ("chosen", "rejected"):
            wanted = theirs[side] if row is talks else [assistant(theirs[side].strip())]
            assert answers[side] == wanted


def test_of_plain_texts_whole_words_are_the_prompt() -> None:
    """TRL would cut "bl" off both answers here."""
    prompt, answers = ranking_of({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert (prompt, answers["chosen"]) == ([user("The sky is")], [assistant("blue.")])
    prompt, answers = ranking_of({"chosen": "The sky is", "rejected": "The sky is blue", "edited": "so blue"})
    assert (prompt, answers["chosen"], answers["edited"]) == (
        [user("The sky")],
        [assistant("is")],
        [assistant("so blue")],
    )


TEXT = st.text(min_size=1, max_size=8).filter(lambda text: text.strip() and not text.startswith("\n\nHuman:"))


@given(texts=st.lists(TEXT, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2 == 1), one=TEXT, other=TEXT)
def test_a_preference_is_the_same_with_and_without_its_prompt_apart(texts: list[str], one: str, other: str) -> None:
    prompt = [(user, assistant)[at % 2](text) for at, text in enumerate(texts)]
    explicit = {"prompt": prompt, "chosen": [assistant(one)], "rejected": [assistant(other)]}
    implicit = {side: [*prompt, *explicit[side]] for side in ("chosen", "rejected")}
    assert ranking_of(implicit) == ranking_of(explicit) == ranking_of({**implicit, "prompt": prompt})
    assert prompt_of(implicit) == prompt_of({"messages": implicit["chosen"]}) == prompt


@pytest.mark.parametrize(
    ("row", "says", "rule"),
    [
        ({"messages": "Hello"}, "'messages' must be a list of messages, not text", "data-message-form"),
        ({"messages": [assistant("Hi!")]}, "there is no prompt", "data-no-prompt"),
        (
            {"messages": [{"from": "human", "value": 3}]},
            "message 0 of 'messages': value must be text, not a number",
            "data-message-form",
        ),
        ({"messages": [{"from": "humn", "value": "a"}]}, "has the role 'humn'", "data-role"),
        (
            {"messages": [{"from": "human", "value": "a", "weight": 1}]},
            "holds 'weight': only from and value are read",
            "data-message-form",
        ),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            "there is no prompt",
            "data-no-prompt",
        ),
        ({"chosen": "yes", "rejected": "no"}, "begin with no prompt in common", "data-no-prompt"),
        ({"chosen": [user("a"), assistant("b")], "rejected": None}, "there is no 'rejected'", "data-no-answer"),
        (
            {"chosen": [user("a"), assistant("b"), user("c")], "rejected": [user("a"), assistant("d")]},
            "must begin and",
            "data-turns",
        ),
    ],
)
def test_what_has_no_prompt_or_no_answer_says_so(row: dict[str, Any], says: str, rule: str) -> None:
    with pytest.raises(DataError) as caught:
        prompt_of(row)
    assert says in caught.value.message and caught.value.rule == rule


@pytest.mark.parametrize(
    ("columns", "says", "rule"),
    [
        ({"prompt": ["instruction", "inptu"]}, "no column 'inptu', did you mean 'input'?", "data-no-column"),
        (
            {"prompt": ["instruction", "count"]},
            "'count' must be text to be joined to others, not a number",
            "data-join",
        ),
        ({"prompt": "instruction", "scores": None}, "no column 'scores'", "data-no-column"),
        ({}, "no column 'prompt'", "data-no-column"),
    ],
)
def test_columns_that_do_not_fit_are_told_at_their_line(
    tmp_path: Path, columns: dict[str, Any], says: str, rule: str
) -> None:
    row = {"instruction": "Add.", "input": "3 and 4", "count": 2}
    with pytest.raises(DataError) as caught:
        read_prompts(write(tmp_path, [row], columns=columns))
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:1: {says}")
    assert caught.value.rule == rule


def test_the_likely_column_of_sharegpt_is_named(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "Hi"}]}
    with pytest.raises(DataError, match=r"prompts\.train\.columns: \{messages: conversations\}"):
        read_prompts(write(tmp_path, [row]))


def test_what_is_done_to_columns_is_in_the_hash(tmp_path: Path) -> None:
    ways = [{}, SCORES, {"prompt": ["prompt", "prompt_id"]}, {"prompt": "prompt_id"}]
    assert len({content_hash(write(tmp_path, ULTRAFEEDBACK, columns=columns)) for columns in ways}) == 4


def test_a_data_set_is_read_by_name_and_split_as_the_hub_has_it(tmp_path: Path) -> None:
    """`datasets` reads a folder laid out as a repository of the Hub in the same way, without a network."""
    folder = tmp_path / "feedback"
    folder.mkdir()
    for split, rows in {"train": ULTRAFEEDBACK, "test": ULTRAFEEDBACK[2:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    asked = {"dataset_name": str(folder), "columns": SCORES}
    assert len(read_prompts(PromptSet.model_validate({**asked, "split": "train"}))) == 2
    (prompt,) = read_prompts(PromptSet.model_validate({**asked, "split": "test"}))
    assert prompt.messages == (user("Say hello."),)
    cut = PromptSet.model_validate({**asked, "split": "train[:1]"})
    assert [pair.chosen for pair in read_preferences(cut)] == [(assistant("A cherry."),)]
    assert content_hash(cut) != content_hash(PromptSet.model_validate({**asked, "split": "train"}))


GOOD = {"prompt": "a", "completion": "b", "label": True}
BAD = {"prompt": "a", "completion": "c", "label": False}


def labelled(folder: Path, rows: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    return [(row.completion[-1]["content"], row.label) for row in read_labelled(write(folder, rows), where="kto.given")]


def test_single_answers_and_their_labels(tmp_path: Path) -> None:
    talk = [user("a"), assistant("b"), user("d"), assistant("e")]
    rows = [GOOD, {"messages": talk, "label": 0}, {**BAD, "label": "False"}, {**GOOD, "label": 1.0}]
    counts: Counter[str] = Counter()
    read = read_labelled(write(tmp_path, rows), "Be brief.", where="kto.given", counts=counts)
    assert [(row.completion, row.label) for row in read] == [
        ((assistant("b"),), True),
        ((assistant("e"),), False),
        ((assistant("c"),), False),
    ]
    assert read[1].prompt.messages == ({"role": "system", "content": "Be brief."}, *talk[:3])
    assert counts == {"duplicate": 1}


def test_two_people_may_disagree_on_an_answer(tmp_path: Path) -> None:
    assert labelled(tmp_path, [GOOD, {**GOOD, "label": False}]) == [("b", True), ("b", False)]


@pytest.mark.parametrize(
    ("rows", "line", "said", "rule"),
    [
        ([GOOD, {"prompt": "a", "completion": "c"}], 2, "there is no 'label'", "data-no-label"),
        ([GOOD, {**BAD, "label": None}], 2, "there is no 'label'", "data-no-label"),
        ([GOOD, {**BAD, "label": "bad"}], 2, "must be true or false, not 'bad'", "data-label"),
        ([GOOD, {**BAD, "label": 2}], 2, "must be true or false, not 2", "data-label"),
        ([GOOD, {**BAD, "label": [False]}], 2, "must be true or false", "data-label"),
        ([GOOD, {**GOOD, "completion": "c"}], 1, "all labels of the set are true (rows: 2)", "data-labels-alike"),
        ([BAD], 1, "all labels of the set are false (rows: 1)", "data-labels-alike"),
        ([GOOD, {**BAD, "completion": " \n"}], 2, "there is no answer", "data-no-answer"),
        ([GOOD, {**BAD, "completion": []}], 2, "not an empty list", "data-message-form"),
        ([GOOD, {"prompt": "a", "label": False}], 2, "there is no 'completion'", "data-no-answer"),
        ([GOOD, {**BAD, "completion": [user("c")]}], 2, "must begin and end with a turn", "data-turns"),
    ],
)
def test_what_is_wrong_with_a_single_answer_is_told_with_its_line(
    tmp_path: Path, rows: list[dict[str, Any]], line: int, said: str, rule: str
) -> None:
    with pytest.raises(DataError) as raised:
        labelled(tmp_path, rows)
    assert raised.value.line == line and said in raised.value.message and raised.value.rule == rule
    assert str(raised.value.file).endswith("rows.jsonl")
