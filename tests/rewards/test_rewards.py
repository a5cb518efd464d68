"""Reward files: how they are called, what they may do, and what each mistake in one looks like."""

from __future__ import annotations

import ast
import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain import shipped
from posttrain.config import RewardEntry
from posttrain.data.messages import Prompt
from posttrain.errors import RewardError
from posttrain.rewards.functions import Reward, load
from posttrain.rewards.golden_cases import wrong_cases

GOOD = """\
def same(prompts, completions, answer, **columns):
    return [float(a == c[-1]["content"]) for a, c in zip(answer, completions)]
"""
PROMPTS = [[{"role": "user", "content": "Two and two?"}], [{"role": "user", "content": "Three?"}]]
ANSWERS = [[{"role": "assistant", "content": text}] for text in ("4", "5")]


def entry(folder: Path, text: str, function: str | None = None, name: str = "mine.py") -> RewardEntry:
    (folder / name).write_text(text)
    return RewardEntry.model_validate({"use": str(folder / name), "function": function})


def call(reward: Reward, **columns: list[Any]) -> list[float | None]:
    return reward(PROMPTS, ANSWERS, columns or {"answer": ["4", "3"]})


def load_fails(folder: Path, text: str, function: str | None = None) -> RewardError:
    with pytest.raises(RewardError) as caught:
        load(entry(folder, text, function))
    assert caught.value.file == str(folder / "mine.py")
    return caught.value


def call_fails(folder: Path, body: str) -> RewardError:
    reward = load(entry(folder, f"import math\n\ndef f(prompts, completions, **columns):\n    {body}\n"))
    with pytest.raises(RewardError) as caught:
        call(reward)
    assert caught.value.file == str(folder / "mine.py")
    return caught.value


class TestCalling:
    def test_scores(self, tmp_path: Path) -> None:
        reward = load(entry(tmp_path, GOOD))
        assert (reward.name, reward.function, reward.needs, reward.takes) == ("mine", "same", ("answer",), None)
        assert call(reward) == [1.0, 0.0]

    def test_loading_does_not_run_the_file(self, tmp_path: Path) -> None:
        load(entry(tmp_path, "raise RuntimeError\n" + GOOD))

    def test_it_can_be_pickled_after_use(self, tmp_path: Path) -> None:
        reward = load(entry(tmp_path, GOOD))
        call(reward)
        assert call(pickle.loads(pickle.dumps(reward))) == [1.0, 0.0]

    @pytest.mark.parametrize("values", ["[None, True]", "(None, 1)", "[None, numpy.float32(1)]"])
    def test_what_counts_as_a_score(self, tmp_path: Path, values: str) -> None:
        text = f"import numpy\ndef f(prompts, completions, **columns):\n    return {values}\n"
        assert call(load(entry(tmp_path, text))) == [None, 1.0]

    def test_a_function_without_kwargs_gets_only_what_it_names(self, tmp_path: Path) -> None:
        reward = load(entry(tmp_path, "def f(completions, prompts, answer, level=None):\n    return answer\n"))
        assert (reward.needs, reward.takes) == (("answer",), ("answer", "level"))
        assert call(reward, answer=[1, 2], other=[3, 4]) == [1.0, 2.0]

    def test_two_files_of_one_name_do_not_meet(self, tmp_path: Path) -> None:
        (tmp_path / "json").mkdir()
        one = load(entry(tmp_path, "def f(prompts, completions, **c):\n    return [1, 1]\n", name="json.py"))
        two = load(entry(tmp_path / "json", "def f(prompts, completions, **c):\n    return [2, 2]\n", name="json.py"))
        assert call(one) + call(two) == [1.0, 1.0, 2.0, 2.0]
        assert sys.modules["json"] is json

    def test_an_edited_file_is_read_anew(self, tmp_path: Path) -> None:
        before = load(entry(tmp_path, GOOD))
        call(before)
        after = load(entry(tmp_path, GOOD.replace("==", "!=")))
        assert call(after) == [0.0, 1.0]


class TestFiles:
    def test_several_functions_need_a_name(self, tmp_path: Path) -> None:
        text = GOOD + GOOD.replace("same", "other") + "def _helper():\n    pass\n"
        error = load_fails(tmp_path, text)
        assert (error.message, error.rule) == ("there are several functions: same, other", "reward-several-functions")
        assert load(entry(tmp_path, text, "other")).name == "mine.other"

    @pytest.mark.parametrize(
        ("text", "function", "line", "rule", "expected"),
        [
            ("x = 1\n", None, None, "reward-no-function", "there is no public function"),
            (GOOD, "sane", None, "reward-no-function", "no function 'sane', did you mean 'same'?"),
            ("def f(:\n", None, 1, "reward-not-python", "not Python: "),
            ("x = '\0'\n", None, None, "reward-not-python", "not Python: "),
            ("x = " + "(" * 5000 + "\n", None, None, "reward-not-python", "not Python: "),
            ("x = " + "-" * 100_000 + "1\n", None, None, "reward-not-python", "not Python: "),
            (
                "\ndef f(texts):\n    pass\n",
                None,
                2,
                "reward-arguments",
                "does not take `prompts` and `completions` by",
            ),
        ],
    )
    def test_message(
        self, tmp_path: Path, text: str, function: str | None, line: int | None, rule: str, expected: str
    ) -> None:
        error = load_fails(tmp_path, text, function)
        assert error.rule == rule and expected in error.message
        assert line is None or error.line == line

    def test_no_such_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.py")  # one would wait for it
        for name in ("none.py", "pipe.py"):
            with pytest.raises(RewardError, match=r"cannot be read: .* \[reward-unreadable\]"):
                load(RewardEntry(use=str(tmp_path / name)))
        (tmp_path / "latin.py").write_bytes("# Größe\n".encode("latin-1"))
        with pytest.raises(RewardError, match=r"not UTF-8 text \[reward-not-utf8\]"):
            load(RewardEntry(use=str(tmp_path / "latin.py")))

    def test_what_it_imports_must_be_there(self, tmp_path: Path) -> None:
        reward = load(entry(tmp_path, "\nimport no_such_module\n" + GOOD))
        with pytest.raises(RewardError, match="raised ModuleNotFoundError: No module named 'no_such_module'") as caught:
            call(reward)
        assert caught.value.line == 2
        assert caught.value.hint is not None and "a reward is one file" in caught.value.hint

    def test_the_hash_is_of_content_and_function(self, tmp_path: Path) -> None:
        two = GOOD + GOOD.replace("same", "other")
        first = load(entry(tmp_path, two, "same")).identity
        assert first == load(entry(tmp_path, two, "same", "renamed.py")).identity
        assert first != load(entry(tmp_path, two, "other")).identity
        assert first != load(entry(tmp_path, two + "\n", "same")).identity


class TestResults:
    @pytest.mark.parametrize(
        ("body", "line", "expected"),
        [
            ("raise ValueError('no such unit')", 4, "f() raised ValueError: no such unit"),
            ("return columns['level']", 4, "f() raised KeyError: 'level'"),
            ("return [1.0]", 3, "f() returned 1 scores for 2 rows"),
            ("return 1.0", 3, "f() returned float, not a list"),
            ("return None", 3, "f() returned NoneType, not a list"),
            ("return 'ab'", 3, "f() returned str, not a list"),
            ("return [1.0, math.nan]", 3, "f() returned nan for row 1, which is no finite number"),
            ("return [math.inf, 1.0]", 3, "f() returned inf for row 0"),
            ("return [1.0, '1.0']", 3, "f() returned '1.0' for row 1"),
            ("return [1.0, [2.0]]", 3, "f() returned [2.0] for row 1"),
        ],
    )
    def test_message(self, tmp_path: Path, body: str, line: int, expected: str) -> None:
        error = call_fails(tmp_path, body)
        assert error.line == line and expected in error.message
        assert error.exit_code == 2

    def test_an_error_in_a_library_points_at_the_users_line(self, tmp_path: Path) -> None:
        assert call_fails(tmp_path, "return [__import__('json').loads('{'), 1]").line == 4

    def test_the_error_passes_between_processes(self, tmp_path: Path) -> None:
        error = call_fails(tmp_path, "return [1.0]")
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


class TestProbe:
    PROMPT = Prompt(({"role": "user", "content": "Two and two?"},), {"anwser": "4"})

    def test_a_missing_column(self, tmp_path: Path) -> None:
        with pytest.raises(RewardError, match=r"same\(\) needs the column 'answer', did you mean 'anwser'") as caught:
            load(entry(tmp_path, GOOD)).probe([self.PROMPT])
        assert caught.value.rule == "reward-column"

    def test_a_function_that_raises_is_found_before_training(self, tmp_path: Path) -> None:
        reward = load(
            entry(tmp_path, "def f(prompts, completions, **columns):\n    return [c[0].text for c in completions]")
        )
        with pytest.raises(RewardError, match="'dict' object has no attribute 'text'"):
            reward.probe([self.PROMPT])

    def test_no_prompts(self, tmp_path: Path) -> None:
        load(entry(tmp_path, GOOD)).probe([])


def shipped_functions() -> Iterator[tuple[str, str]]:
    """Every shipped reward's file, and each public function in it."""
    for name in shipped.names("reward"):
        if name.endswith(".py"):
            tree = ast.parse(shipped.locate("reward", name).read_text("utf-8"))
            functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            yield from ((name, function) for function in functions if function[0] != "_")


class TestGoldenCases:
    @pytest.mark.parametrize(("name", "function"), list(shipped_functions()))
    def test_shipped_rewards(self, name: str, function: str) -> None:
        reward = load(RewardEntry(use=name, function=function))
        assert Path(reward.file).with_suffix(".cases.jsonl").is_file()
        assert wrong_cases(reward) == []

    def test_a_case_that_does_not_come_out(self, tmp_path: Path) -> None:
        reward = load(entry(tmp_path, GOOD))
        case = {"function": "same", "prompt": "Q", "completion": "4", "columns": {"answer": "5"}, "expected": 1.0}
        (tmp_path / "mine.cases.jsonl").write_text(
            json.dumps(case) + "\n" + json.dumps(case | {"function": "x"}) + "\n"
        )
        assert wrong_cases(reward) == [f"{tmp_path}/mine.cases.jsonl:1: same() gave 0.0, expected 1.0"]

    def test_a_case_that_cannot_be_read(self, tmp_path: Path) -> None:
        reward = load(entry(tmp_path, GOOD))
        (tmp_path / "mine.cases.jsonl").write_text('{"prompt": "Q"}\n')
        with pytest.raises(RewardError, match=r"mine.cases.jsonl:1: not a golden case: 'completion' \[reward-case\]"):
            wrong_cases(reward)
