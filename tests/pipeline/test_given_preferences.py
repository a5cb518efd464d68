"""Pairs that people labelled or edited: how they are read, and what reward model and DPO learn from them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.tiny_models import reward_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain import shipped
from posttrain.config import Dpo, PromptSet
from posttrain.data.load import read_preferences
from posttrain.data.messages import prompt_id
from posttrain.data.pairs import once, ordered_pairs
from posttrain.data.tables import PAIRS
from posttrain.errors import DataError, EmptyStageError
from posttrain.job import Job
from posttrain.stages import run_stage
from posttrain.stages.prompts import SCHEMA
from posttrain.stages.reward_model import pair_margins
from posttrain.storage.pieces import Pieces

BASE = Path(__file__).parents[2] / "data" / "tiny-base"
SHORT = {"bf16": False, "max_steps": 1, "logging_steps": 1, "learning_rate": 1e-6}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, *rows: dict[str, Any], **options: Any) -> Any:
    return read_preferences(PromptSet(path=str(write(folder, *rows))), **options)


PAIR = {"prompt": "a", "chosen": "x", "rejected": "y"}


def test_answers_are_text_or_messages_with_or_without_the_prompt(tmp_path: Path) -> None:
    talk = [assistant("4"), user("Sure?"), assistant("Yes.")]
    rows = [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "edited": "It is 4.", "level": "better"},
        {"prompt": [user("2 + 2?")], "chosen": talk, "rejected": [user("2 + 2?"), assistant("5")]},
    ]
    first, second = read(tmp_path, *rows)
    assert first.chosen == (assistant("4"),) and first.rejected == (assistant("5"),)
    assert first.edited == (assistant("It is 4."),) and first.level == "better"
    assert second.chosen == tuple(talk) and second.rejected == (assistant("5"),)
    assert second.edited is second.level is None
    assert first.prompt.id == second.prompt.id == prompt_id([user("2 + 2?")])


def test_rows_that_teach_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    rows = [{**PAIR, "rejected": "x"}, {**PAIR, "chosen": " "}, PAIR, PAIR, {**PAIR, "rejected": ""}]
    assert len(read(tmp_path, *rows, counts=counts)) == 2  # an empty answer may well be the worse one
    assert counts == {"identical": 1, "empty": 1, "duplicate": 1}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "chosen": "x"}, "pairs.jsonl:2: there is no 'rejected'"),
        ({**PAIR, "chosen": 3}, "pairs.jsonl:2: 'chosen' must be text or a list of messages, not a number"),
        ({**PAIR, "edited": [user("hm")]}, "pairs.jsonl:2: 'edited' must begin and end with a turn of the assistant"),
        ({**PAIR, "level": "beter"}, "pairs.jsonl:2: no level is called 'beter', did you mean 'better'?"),
        ({**PAIR, "rejected": [{"role": "assistent", "content": ""}]}, "has the role 'assistent', did you mean"),
    ],
)
def test_what_cannot_be_used_is_told_at_its_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, PAIR, row)
    assert says in str(caught.value)


def pairs(folder: Path, *rows: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The stage on these rows alone, nothing sampled: its metrics and its table. `eval?` is a prompt of dev."""
    asked = [{"role": "system", "content": "Be brief."}, user("eval?")]
    row = {"id": prompt_id(asked), "prompt": asked, "columns": "{}", "line": 1}
    for name in ("train", "dev", "heldout"):
        pq.write_table(pa.Table.from_pylist([row] * (name == "dev"), schema=SCHEMA), folder / f"{name}.parquet")
    section = {"prompts": 0, "heldout": 0.01}
    config = {"preferences": section, "take": {"seed": 0, "start": 0, "count": 0}, "rewards": [], "engine": {}}
    runtime = {"given": {"set": {"path": str(write(folder, *rows))}, "system": "Be brief."}}
    job = Job(config, {"prompts": folder, "model": BASE}, folder, folder / "scratch", 0, runtime)
    return run_stage("preferences", job), pq.read_table(folder / "pairs.parquet").to_pylist()


def test_the_table_holds_what_was_given(tmp_path: Path) -> None:
    """Fails when the file is not read: then no pair is left."""
    metrics, table = pairs(
        tmp_path,
        {**PAIR, "edited": "z", "level": "significantly_better", "note": "n"},
        {**PAIR, "level": "marginally_better"},
        {**PAIR, "prompt": [{"role": "system", "content": "Be kind."}, user("b")], "level": None},
        {**PAIR, "chosen": "x1 " * 600},
    )
    assert metrics["given"] == metrics["pairs"] == 2
    assert metrics["labels"] == {"significantly_better": 1, "marginally_better": 1, "no level": 1, "too long": 1}
    first, second = table
    assert first["prompt"] == [{"role": "system", "content": "Be brief."}, user("a")]
    assert [first[side] for side in ("edited", "chosen", "rejected")] == [[assistant(text)] for text in "zxy"]
    assert (first["level"], first["source"], first["columns"]) == ("significantly_better", "given", '{"note": "n"}')
    assert second["prompt"][0]["content"] == "Be kind."
    assert second["edited"] is None


def test_a_pair_on_a_prompt_that_is_evaluated_on_is_left_out(tmp_path: Path) -> None:
    metrics, table = pairs(tmp_path, PAIR, {**PAIR, "prompt": "eval?"})
    assert [row["prompt"][-1] for row in table] == [user("a")]
    assert metrics["labels"] == {"in an evaluation set": 1, "no level": 1}
    with pytest.raises(EmptyStageError, match=r"preferences: no pair is left .*in an evaluation set"):
        pairs(tmp_path, {**PAIR, "prompt": "eval?"})


def test_a_file_that_goes_on_is_learned_from_once(tmp_path: Path) -> None:
    row = {"prompt": [user("a")], "chosen": [assistant("x")], "rejected": [assistant("y")], "edited": None}
    given, sampled = {**row, "source": "given"}, {**row, "source": "policy over previous"}
    assert once([[given, sampled], [given, sampled]]) == [given, sampled, sampled]


def test_a_ranking_of_three_is_three_pairs_to_dpo() -> None:
    """Fails when the edited answer, or its order above the chosen one, is not looked at."""
    row = {"prompt": [user("a")], "chosen": ["x"], "rejected": ["y"]}
    three = [(pair["chosen"][0], pair["rejected"][0]) for pair in ordered_pairs({**row, "edited": ["z"]})]
    assert three == [("z", "x"), ("z", "y"), ("x", "y")]
    assert ordered_pairs({**row, "edited": None}) == [{**row, "edited": None}]


def ranking(name: str, edited: str | None = None, split: str = "train") -> dict[str, Any]:
    return {
        "prompt_id": name,
        "prompt": [user(f"{name}?")],
        "chosen": [assistant("Answer: 7")],
        "rejected": [assistant("I do not know.")],
        "edited": [assistant(edited)] if edited else None,
        "source": "given",
        "split": split,
        "columns": "{}",
    }


def table(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=PAIRS), folder / "pairs.parquet")
    return folder


def test_an_edited_answer_is_what_dpo_learns_most(tmp_path: Path) -> None:
    """The NLL term by plain torch: of the edited answer twice, of the chosen once."""
    rows = table(tmp_path / "table", ranking("a", edited="It is 7, of course."), ranking("b", split="heldout"))
    section = Dpo.model_validate({**SHORT, "pairs_from": "preferences"}).model_dump(mode="json")
    (tmp_path / "out").mkdir()
    config = {"dpo": section, "model": {"dtype": "float32", "lora": None}}
    inputs = {"model": BASE, "preferences_1": rows, "preferences_2": rows / ".." / "table"}
    metrics = run_stage("dpo", Job(config, inputs, tmp_path / "out", tmp_path / "scratch", 0))
    tokens, model = AutoTokenizer.from_pretrained(BASE), AutoModelForCausalLM.from_pretrained(BASE)

    def nll(text: str) -> float:
        talk = [user("a?"), assistant(text)]
        ids = tokens.encode(tokens.apply_chat_template(talk, tokenize=False), add_special_tokens=False)
        start = ids.index(tokens.convert_tokens_to_ids("<|assistant|>")) + 1
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return -sum(log_p[at - 1, ids[at]].item() for at in range(start, len(ids))) / (len(ids) - start)

    edited, chosen = nll("It is 7, of course."), nll("Answer: 7")
    assert metrics["last"]["nll"] == pytest.approx((2 * edited + chosen) / 3, abs=1e-4)
    assert abs(edited - chosen) > 0.1
    assert (metrics["pairs"], metrics["sources"]) == (3, {"preferences": 3})


def test_the_reward_model_reads_an_answer_of_several_turns_whole(tmp_path: Path) -> None:
    """Fails when only the last turn is scored: then both answers are one, and none is above the other."""
    model = reward_model("llama", vocab_size=640)
    model.save_pretrained(tmp_path / "model")
    for path in [*BASE.glob("tokenizer*"), BASE / "chat_template.jinja"]:
        shutil.copy2(path, tmp_path / "model")
    tokens = AutoTokenizer.from_pretrained(BASE)
    last = [user("Sure?"), assistant("Yes.")]
    sides = [[assistant("7"), *last], [assistant("I do not know."), *last]]

    def score(answer: list[dict[str, str]]) -> float:
        text = tokens.apply_chat_template([user("3 + 4?"), *answer], tokenize=False)
        ids = tokens.encode(text, add_special_tokens=False)
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits[0, 0].item()

    better, worse = sorted(sides, key=score, reverse=True)
    pair = {"prompt_id": "a", "prompt": [user("3 + 4?")], "chosen": better, "rejected": worse}
    other = {**pair, "prompt_id": "b", "chosen": worse, "rejected": better}
    pieces = Pieces(tmp_path / "pieces")
    margins = pair_margins([pair, other], str(tmp_path / "model"), pieces)
    assert [margin > 0 for margin in margins] == [True, False]


def test_the_shipped_example_is_read() -> None:
    read = read_preferences(PromptSet(path="edited-notes.jsonl"))
    assert len(read) == 13 and all(pair.edited for pair in read)
    assert (shipped.folder("data") / "edited-notes.md").is_file()
