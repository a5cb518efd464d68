"""Answers rendered together are those rendered one by one."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from posttrain.data.chat_template import Tails, render_answers, render_completion, render_prompt


@pytest.mark.parametrize(
    "answers",
    [
        ["3 + 4 = 7. Answer: 7", "7", "  outer blanks ", "", "a <|end|> inside", "<think>hm</think>7", "plain again"],
        ["<|end|>", "first was not plain", "x"],
    ],
)
def test_answers_rendered_together_are_those_rendered_one_by_one(answers: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "data" / "tiny-base")
    messages = [{"role": "user", "content": "3 + 4? <|assistant|>"}]
    prompt, together = render_answers(tokenizer, messages, answers)
    assert prompt == render_prompt(tokenizer, messages)
    assert together == [render_completion(tokenizer, messages, answer) for answer in answers]


def test_what_one_prompt_showed_of_the_template_holds_for_the_next() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "data" / "tiny-base")
    prompts = [[{"role": "user", "content": text}] for text in ("3 + 4?", "5 - 2? <|end|>")]
    prompts.append([{"role": "system", "content": "Be brief."}, *prompts[0]])
    tails: Tails = {}
    for messages in prompts:
        for answers in (["7", "a <|end|> inside"], [" 7 ", "Answer: 7"]):
            _, together = render_answers(tokenizer, messages, answers, tails)
            assert together == [render_completion(tokenizer, messages, answer) for answer in answers]
    assert set(tails) == {("user",), ("system", "user")}
