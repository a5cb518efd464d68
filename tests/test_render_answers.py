"""Answers rendered together are those rendered one by one."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from posttrain.chat import render_answers, render_completion, render_prompt


@pytest.mark.parametrize(
    "answers",
    [
        ["3 + 4 = 7. Answer: 7", "7", "  outer blanks ", "", "a <|end|> inside", "<think>hm</think>7", "plain again"],
        ["<|end|>", "first was not plain", "x"],
    ],
)
def test_answers_rendered_together_are_those_rendered_one_by_one(answers: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parent.parent / "data" / "tiny-base")
    messages = [{"role": "user", "content": "3 + 4? <|assistant|>"}]
    prompt, together = render_answers(tokenizer, messages, answers)
    assert prompt == render_prompt(tokenizer, messages)
    assert together == [render_completion(tokenizer, messages, answer) for answer in answers]
