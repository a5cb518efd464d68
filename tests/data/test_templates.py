"""What is wrong with a chat template is told with its file and line before anything is sampled; several: choose one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import TEMPLATE, tokenizer
from transformers import AutoTokenizer

from posttrain.config import Model
from posttrain.data.chat_template import (
    check_template,
    ending,
    parts_of,
    render_completion,
    render_prompt,
    render_turns,
)
from posttrain.errors import DataError, ModelError, RecipeError
from posttrain.models import inspect_model, inspection, resolve
from posttrain.models.inspection import inspect
from posttrain.recipe.load import load

BASE = Path(__file__).parents[2] / "data" / "tiny-base"
GOOD = (BASE / "chat_template.jinja").read_text()
GROWS = "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x * 2 %}{% endfor %}"
SAID = [{"role": "assistant", "content": "7"}]
SAYS = [{"role": "user", "content": "How many has she?"}]


def folder(tmp_path: Path, template: str | None, **settings: Any) -> Path:
    made = Path(shutil.copytree(BASE, tmp_path / "model"))
    (made / "chat_template.jinja").unlink()
    if template is not None:
        (made / "chat_template.jinja").write_text(template)
    file = made / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return made


@pytest.mark.parametrize(
    ("rule", "template", "line"),
    [
        ("template-syntax", "\n{% if %}", 2),
        ("template-syntax", "\n{{ messages | nope }}", 2),
        ("template-undefined", "\n{{ nope.content }}", 2),
        ("template-undefined", "\n\n{{ messages[5].content }}", 3),
        ("template-types", "\n{{ 1 + 'a' }}", 2),
        ("template-types", "\n{{ '{x}'.format() }}", 2),
        ("template-types", "\n{{ strftime_now(3) }}", 2),
        ("template-arithmetic", "\n{{ 1 / 0 }}", 2),
        ("template-arithmetic", "\n{% for i in range(10 ** 9) %}{% endfor %}", 2),
        ("template-recursion", "\n{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", 2),
        ("template-nesting", "{% if 1 %}" * 300 + "{% endif %}" * 300, None),
        ("template-include", "\n{% include 'x' %}", 2),
        ("template-include", "\n{% import 'x' as y %}", 2),
        ("template-include", "\n{% extends 'x' %}", 2),
        ("template-forbidden", "\n{{ ''.__class__.__mro__ }}", 2),
        ("template-forbidden", "\n{{ messages.append(1) }}", 2),
        ("template-refuses", "\n{{ raise_exception('no') }}", None),
    ],
)
def test_an_error_of_a_template_has_its_line(rule: str, template: str, line: int | None) -> None:
    made = tokenizer()
    made.chat_template = template
    with pytest.raises((ModelError, DataError)) as caught:
        render_prompt(made, SAYS)
    error = caught.value
    assert (error.rule, error.line, error.exit_code) == (rule, line, 2) and error.hint
    assert isinstance(error, DataError) == (rule == "template-refuses")


@pytest.mark.parametrize(
    ("rule", "template"),
    [
        ("template-none", None),
        ("template-arithmetic", "{{ 1 / 0 }}"),
        ("template-empty", "{% if false %}{% endif %}"),
        ("template-leaves-out", "one question {% if not add_generation_prompt %}<|end|>{% endif %}"),
        ("template-leaves-out", "{{ messages[0].content }}{% if not add_generation_prompt %}<|end|>{% endif %}"),
        ("template-no-end", GOOD.replace("<|end|>", "")),
        ("template-cannot-render", "{{ raise_exception('no') }}"),
        ("template-out-of-bounds", "{{ 'a' * 10 ** 10 }}"),
        ("template-out-of-bounds", "{{ '%9999999999d' % 3 }}"),
        ("template-out-of-bounds", GROWS),
        ("template-out-of-bounds", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        ("template-size", "a" * 1_100_000),
    ],
)  # fmt: skip
def test_a_template_that_no_run_can_use(
    tmp_path: Path, rule: str, template: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_SECONDS", 1)
    with pytest.raises(ModelError) as caught:
        inspect(folder(tmp_path, template), [SAYS])
    assert caught.value.rule == rule
    assert caught.value.file and caught.value.file.startswith(str(tmp_path)) and caught.value.hint


def test_a_template_that_is_no_text(tmp_path: Path) -> None:
    made = folder(tmp_path, None, chat_template=3)
    with pytest.raises(ModelError) as caught:
        inspect(made, [SAYS])
    assert caught.value.rule == "template-form"
    (made / "chat_template.jinja").write_bytes(b"\xff\xfe")
    folder_settings = made / "tokenizer_config.json"
    folder_settings.write_text("{}")
    with pytest.raises(ModelError) as caught:
        inspect(made, [SAYS])
    assert caught.value.rule == "template-encoding"


class TestTools:
    @pytest.mark.parametrize("asks", ["tools | length > 0", "(tools | length) == 1"])
    def test_their_number_can_be_asked(self, asks: str) -> None:
        made, plain = tokenizer(), tokenizer()
        made.chat_template = "{% if " + asks + " %}tools{% endif %}" + TEMPLATE
        assert render_prompt(made, SAYS) == render_prompt(plain, SAYS)

    def test_a_template_that_asks_whether_there_are_any_is_told_none(self) -> None:
        made, plain = tokenizer(), tokenizer()
        made.chat_template = "{% if tools is not none or tools %}tools{% endif %}" + TEMPLATE
        assert render_prompt(made, SAYS) == render_prompt(plain, SAYS)


class TestSeveral:
    @pytest.mark.parametrize(
        "several",
        [
            [{"name": "short", "template": GOOD}, {"name": "long", "template": "long " + GOOD}],
            {"short": GOOD, "long": "long " + GOOD},
        ],
    )
    def test_one_is_to_be_chosen_and_is_what_the_run_gets(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: Any
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        made = folder(tmp_path, None, chat_template=several)
        with pytest.raises(ModelError, match="no default: long, short") as caught:
            inspect(made, [SAYS])
        assert caught.value.rule == "template-no-default"
        with pytest.raises(ModelError, match="it has long, short") as caught:
            resolve(Model(path=str(made), chat_template="middle"))
        assert caught.value.rule == "template-unknown-name"

        plain = resolve(Model(path=str(made)))
        chosen = resolve(Model(path=str(made), chat_template="long"))
        assert chosen.hash != plain.hash and inspect_model(Model(path=str(made), chat_template="long")).here
        settings = made / "tokenizer_config.json"
        settings.write_text(settings.read_text().replace("{", '{"mended": 1, ', 1))  # an inspection after it sees it
        seen = inspect_model(Model(path=str(made), chat_template="long")).path / "tokenizer_config.json"
        assert json.loads(seen.read_text())["mended"] == 1
        inspect(chosen.path, [SAYS])
        loaded = AutoTokenizer.from_pretrained(chosen.path)
        loaded.save_pretrained(tmp_path / "trained")  # as every stage that trains does
        assert AutoTokenizer.from_pretrained(tmp_path / "trained").chat_template == "long " + GOOD

    def test_a_files_content_decides(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        (one, two, three) = (tmp_path / f"{name}.jinja" for name in ("one", "two", "three"))
        one.write_text(GOOD)
        two.write_text(GOOD)
        three.write_text(GOOD + " ")
        hashes = [resolve(Model(path="tiny-base", chat_template=str(file))).hash for file in (one, two, three)]
        assert hashes[0] == hashes[1] != hashes[2]

    def test_a_recipe_names_it_from_where_it_lies(self, tmp_path: Path) -> None:
        (tmp_path / "mine.jinja").write_text(GOOD)
        (tmp_path / "mine.yaml").write_text("extends: quickstart\nmodel: {chat_template: ./mine.jinja}\n")
        assert load(str(tmp_path / "mine.yaml")).model.chat_template == str(tmp_path / "mine.jinja")
        assert load("quickstart", ["model.chat_template=plain.jinja"]).model.chat_template == "plain.jinja"
        assert load("quickstart", ["model.chat_template=tool_use"]).model.chat_template == "tool_use"
        for named, rule in (("./none.jinja", "recipe-no-such-file"), ("none.jinja", "recipe-not-shipped")):
            with pytest.raises(RecipeError) as caught:
                load("quickstart", [f"model.chat_template={named}"])
            assert caught.value.rule == rule


class TestBaseModel:
    """A model without a chat template, as base models are."""

    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def test_it_is_told_the_key_and_the_template_that_is_shipped(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError) as caught:
            inspect(folder(tmp_path, None), [SAYS])
        assert "model.chat_template: FILE" in str(caught.value.hint) and "plain.jinja" in str(caught.value.hint)

    def test_with_the_shipped_one_it_is_used_and_saved(self, tmp_path: Path) -> None:
        found = resolve(Model(path=str(folder(tmp_path, None)), chat_template="plain.jinja"))
        inspect(found.path, [SAYS])
        loaded = AutoTokenizer.from_pretrained(found.path)
        prompt = loaded.apply_chat_template(SAYS, tokenize=False, add_generation_prompt=True)
        talk = loaded.apply_chat_template([*SAYS, *SAID], tokenize=False)
        assert prompt == "User:\nHow many has she?\n\nAssistant:\n" and talk == f"{prompt}7{loaded.eos_token}"
        _, added, parts = render_turns(loaded, SAYS, [*SAID, *SAYS, *SAID])  # which only appends
        assert added.count(loaded.eos_token_id) == 2 and len(added) == len(parts)
        loaded.save_pretrained(tmp_path / "trained")
        assert AutoTokenizer.from_pretrained(tmp_path / "trained").apply_chat_template(SAYS, tokenize=False)

    @pytest.mark.parametrize(
        ("rule", "template", "line"),
        [
            ("template-syntax", "\n{% if %}", 2),
            ("template-undefined", "\n{{ nope.content }}", 2),
            ("template-leaves-out", "one question", None),
        ],
    )
    def test_what_is_wrong_with_a_file_is_told_of_that_file(
        self, tmp_path: Path, rule: str, template: str, line: int | None
    ) -> None:
        (tmp_path / "mine.jinja").write_text(template)
        found = resolve(Model(path=str(folder(tmp_path, None)), chat_template=str(tmp_path / "mine.jinja")))
        with pytest.raises(ModelError) as caught:
            inspect(found.path, [SAYS])
        assert (caught.value.rule, caught.value.line) == (rule, line)
        assert caught.value.file == str(tmp_path / "mine.jinja")

    def test_a_file_that_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError) as caught:
            resolve(Model(path="tiny-base", chat_template=str(tmp_path / "gone.jinja")))
        assert caught.value.rule == "template-no-file"


def words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "</s>": 1, "<user>": 2, "<assistant>": 3, "two": 4, "words": 5}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<unk>", eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% if m.role == 'assistant' %} </s>{% endif %} "
        "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    return fast


def test_where_an_answer_ends_is_found_without_letters_in_the_vocabulary() -> None:
    assert ending(words(), [{"role": "user", "content": "two words"}]) == [1]


@pytest.mark.parametrize(
    ("rule", "call"),
    [
        ("template-role", lambda: render_prompt(tokenizer(), [{"role": "king", "content": "a"}])),
        ("template-last-turn", lambda: render_turns(tokenizer(), SAYS, SAYS)),
        ("template-control-token", lambda: render_prompt(words(), [{"role": "user", "content": "two </s>"}])),
        ("template-writes-padding", lambda: check_template(words(), (), [[{"role": "user", "content": "letters"}]])),
        ("model-no-end", lambda: check_template(endless())),
        ("template-rewrites-prompt", lambda: render_completion(rewriting("messages | length > 1"), SAYS, "b")),
        (
            "template-rewrites-turn",
            lambda: render_turns(rewriting("messages | length > 2"), SAYS, [*SAID, *SAYS, *SAID]),
        ),
        ("template-endings-differ", lambda: parts_of([7, 2], [3])),
    ],
)
def test_what_a_template_or_its_messages_do_not_have(rule: str, call: Any) -> None:
    with pytest.raises((ModelError, DataError)) as caught:
        call()
    assert caught.value.rule == rule and caught.value.hint


def endless() -> Any:
    made = tokenizer()
    made.eos_token = None
    return made


def rewriting(where: str) -> Any:
    made = tokenizer()
    made.chat_template = "{% if " + where + " %}more{% endif %}" + TEMPLATE
    return made
