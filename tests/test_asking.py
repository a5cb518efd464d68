"""A model asked outside a run: eval, sample and chat."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.parrot import CHAIN, LOOP, save
from support.tiny_models import causal_lm, tokenizer
from typer.testing import CliRunner, Result

from posttrain.cli import app
from posttrain.errors import InputError, ModelError
from posttrain.inference.models import Conversation, find
from posttrain.storage.store import Store

FEW = ["prompts.train.rows=:40", "prompts.dev.rows=:12", "prompts.heldout.rows=:8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that says KLMN and stops after a J, and goes on for ever after a V: see `parrot`.

    Its template writes nothing after a message of the user: the last character decides what it says.
    """
    folder = save(tmp_path_factory.mktemp("parrot"))
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def posttrain(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=given, catch_exceptions=False)


class TestChat:
    def test_piped_lines_are_answered_one_by_one(self, model: Path) -> None:
        told = posttrain("chat", str(model), given="J\n\n/reset\nJ\n/quit\nJ\n")
        assert told.stdout.splitlines() == [CHAIN, CHAIN]

    def test_an_answer_comes_in_pieces_and_becomes_part_of_the_talk(self, model: Path) -> None:
        talk = Conversation(str(model), None, 0.0, 6, 0)
        pieces: list[str] = []
        talk.reply("V", pieces.append)
        assert len(pieces) > 1 and "".join(pieces) == (LOOP * 2)[:6]
        assert [message["role"] for message in talk.messages] == ["user", "assistant"]
        talk.reset()
        assert talk.messages == []

    def test_a_model_whose_logits_are_no_numbers_is_told(self, tmp_path: Path) -> None:
        causal_lm("granite", logits_scaling=0.0).save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        talk = Conversation(str(tmp_path), None, 1.0, 6, 0)
        with pytest.raises(ModelError, match=r"\[model-logits-not-finite\]"):
            talk.reply("J", print)

    def test_a_talk_that_is_too_long_is_told_and_can_begin_anew(self, model: Path) -> None:
        told = posttrain("chat", str(model), given="x" * 80 + "\nJ\n")
        assert told.stdout.splitlines() == [CHAIN]
        assert "/reset starts a new one" in told.stderr


class TestSample:
    def test_jsonl_and_parquet_hold_the_same_answers(self, model: Path, tmp_path: Path) -> None:
        prompts = tmp_path / "asked.jsonl"
        prompts.write_text('{"prompt": "J", "answer": 1}\n{"prompt": "R", "answer": 2}\n')
        for name in ("a.jsonl", "a.parquet"):
            more = ("--k", "3", "--max-new-tokens", "5", "--out", str(tmp_path / name))
            assert posttrain("sample", str(model), "--prompts", str(prompts), *more).exit_code == 0
        rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        table = pq.read_table(tmp_path / "a.parquet").to_pylist()
        assert [row["completion"] for row in rows] == [row["completion"] for row in table]
        assert [row["completion"][0]["content"] for row in rows if row["columns"] == {"answer": 1}] == [CHAIN] * 3
        drawn = {row["completion"][0]["content"] for row in rows if row["columns"] == {"answer": 2}}
        assert len(drawn) == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.parquet", "asked.jsonl"]

    @pytest.mark.parametrize(
        ("arguments", "says", "rule"),
        [
            (["--out", "a.jsonl"], "from a recipe or from a file", "command-options"),
            (["--out", "a.txt", "--prompts", "asked.jsonl"], "name a .parquet or a .jsonl file", "command-output"),
            # no recipe has a key for it, so none is named
            (["--out", "a.jsonl", "--prompts", "none.jsonl"], r"no such file \[.*\]$", "data-no-such-file"),
            (
                ["--out", "a.jsonl", "--prompts", "other.jsonl"],
                "call one of them prompt$",
                "data-no-column",
            ),
            (["--out", "none/a.jsonl", "--prompts", "asked.jsonl"], "no such folder", "command-output"),
            (
                ["--out", "a.jsonl", "--prompts", "asked.jsonl", "--max-new-tokens", "64"],
                "lower --max-new-tokens",
                "command-prompt-too-long",
            ),
        ],
    )
    def test_what_is_wrong_is_told(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str, rule: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "asked.jsonl").write_text('{"prompt": "J"}\n')
        (tmp_path / "other.jsonl").write_text('{"question": "J"}\n')
        with pytest.raises(InputError, match=says) as caught:
            posttrain("sample", str(model), *arguments)
        assert caught.value.rule == rule


def test_a_run_means_its_promoted_policy(model: Path, tmp_path: Path) -> None:
    run = Store(tmp_path)
    run.write_run({"version": 1, "recipe": "r", "rounds": [{"round": 0, "stages": {}, "policy": str(model)}]}, "")
    assert find(str(tmp_path)) == model
    run.write_run({"version": 1, "recipe": "r", "rounds": [{"round": 0, "stages": {}}]}, "")
    with pytest.raises(InputError, match=r"no policy yet \[model-no-policy-yet\]"):
        find(str(tmp_path))
    with pytest.raises(InputError, match="did you mean 'tiny-base'"):
        find("tiny-bas")


@pytest.mark.slow
def test_eval_finds_what_the_run_s_own_stage_finds(tmp_path: Path) -> None:
    sets = [f"--set={setting}" for setting in FEW]
    told = posttrain("eval", "tiny-base", "--on", "dev", "--k", "2", "--json", *sets)
    found = json.loads(told.stdout)["dev"]
    more = ["evaluate.k=2", "preferences.prompts=8", "samples.prompts=8", "pairs.prompts=8", "promote=always"]
    more += ["reward_model.max_steps=1", "sft.max_steps=1", "dpo.max_steps=1"]
    posttrain("round", "--n", "1", "--run", str(tmp_path / "run"), *sets, *(f"--set={setting}" for setting in more))
    status = json.loads(posttrain("status", str(tmp_path / "run"), "--json").stdout)
    base = status["rounds"][0]["evaluate"]["dev"]
    assert {name: base[name] for name in found} == found
