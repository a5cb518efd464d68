"""Parses rows of the ecosystem's formats into a prompt and the answers to it, as messages. Pure.

These are TRL's, conversational and plain (a prompt alone, with a completion, with a completion and its label, with a
preference; a preference whose prompt stands in both answers; `messages`), ShareGPT's messages, and dialogues in one
text as HH-RLHF has them. A DataError here has no place: whoever knows the line adds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from posttrain.data.messages import Message
from posttrain.errors import DataError, did_you_mean

ROLES = ("system", "user", "assistant")
# Columns that hold answers: of a prompt set they are no columns, else one prompt with two answers would be two.
ANSWERS = ("messages", "completion", "chosen", "rejected", "edited")
_SHAREGPT = {"human": "user", "gpt": "assistant"}
# CSV has text alone, and some tables write numbers.
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_HH = {"Human": "user", "Assistant": "assistant"}
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def has_prompt(row: Mapping[str, Any]) -> bool:
    """Whether there is a column to take a prompt from."""
    return "prompt" in row or "messages" in row or {"chosen", "rejected"} <= row.keys()


def prompt_of(row: Mapping[str, Any]) -> list[Message]:
    """The row's prompt: of `prompt`, else `messages` up to the last of the user, else where both answers begin alike.

    Raises:
        DataError: it cannot be read, or does not end with a message of the user.
    """
    if "prompt" in row:
        return _checked(parsed("prompt", row["prompt"], "user"))
    if "messages" in row:
        return _checked(_until_user(parsed("messages", row["messages"])))
    return ranking_of(row)[0]


def demonstration_of(row: Mapping[str, Any]) -> tuple[list[Message], list[Message]]:
    """The prompt and the answer to it: `completion`, or what follows the prompt in `messages`.

    Raises:
        DataError: one of them cannot be read, or there is no answer.
    """
    prompt, name = prompt_of(row), "messages" if "messages" in row and "completion" not in row else "completion"
    if row.get(name) is None:
        raise DataError(f"there is no {name!r}", rule="data-no-answer")
    answer = _answer(name, row.get(name), prompt)
    if not answer[-1]["content"].strip():
        raise DataError(
            "there is no answer", hint="write it in 'completion', or as the last of 'messages'", rule="data-no-answer"
        )
    return prompt, answer


def labelled_of(row: Mapping[str, Any]) -> tuple[list[Message], list[Message], bool]:
    """The prompt, the answer to it (as in `demonstration_of`), and whether it is good: `label`.

    Raises:
        DataError: one of them cannot be read, or is not there.
    """
    given = row.get("label")
    if given is None:
        hint = "true for a good answer, false for a bad one; under another name: `columns: {label: THEIRS}`"
        raise DataError("there is no 'label'", hint=hint, rule="data-no-label")
    label = _LABELS.get(str(given).strip().lower()) if isinstance(given, str | bool | int | float) else None
    if label is None:
        said = repr(given)[:60]
        raise DataError(f"'label' must be true or false, not {said}", hint="1 and 0 are read too", rule="data-label")
    return *demonstration_of(row), label


def ranking_of(row: Mapping[str, Any]) -> tuple[list[Message], dict[str, list[Message] | None]]:
    """The prompt, and the answers `chosen`, `rejected` and `edited` (None where there is none).

    Answers are text or messages, with or without those of the prompt before them. Without `prompt`, the prompt is that
    with which both answers begin: messages up to the last of the user; of plain texts whole words, as in TRL.

    Raises:
        DataError: one of them cannot be read, or there is no prompt.
    """
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise DataError(f"there is no {name!r}", rule="data-no-answer")
    if "prompt" in row:
        prompt = _checked(parsed("prompt", row["prompt"], "user"))
    elif isinstance(row["chosen"], str) and not row["chosen"].startswith("\n\nHuman:"):
        return _plain(row)
    else:
        both = [parsed(name, row[name], "assistant") for name in ("chosen", "rejected")]
        alike = list(takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=False)))
        prompt = _checked(_until_user([message for message, _ in alike]))
    given = {name: row.get(name) for name in ("chosen", "rejected", "edited")}
    return prompt, {name: None if value is None else _answer(name, value, prompt) for name, value in given.items()}


def parsed(name: str, value: Any, role: str | None = None) -> list[Message]:
    """A column as messages. Text is one message of `role`, or a dialogue where it begins as those of HH-RLHF do.

    Raises:
        DataError: it is neither text nor a list of messages.
    """
    if isinstance(value, str) and value.startswith("\n\nHuman:"):
        return _dialogue(value)
    if isinstance(value, str) and role:
        return [{"role": role, "content": value}]
    if isinstance(value, list) and value:
        return [_message(f"message {index} of {name!r}", each) for index, each in enumerate(value)]
    wanted = "text or a list of messages" if role else "a list of messages"
    raise DataError(
        f"{name!r} must be {wanted}, not {kind(value)}", hint='a message: {"role", "content"}', rule="data-message-form"
    )


def _message(which: str, message: Any) -> Message:
    """A message under `role` and `content`; ShareGPT's under `from` and `value`."""
    names = ("role", "content")
    if isinstance(message, dict) and {"from", "value"} <= set(message):
        names = ("from", "value")
    if not isinstance(message, dict) or not set(names) <= set(message):
        raise DataError(
            f"{which} must hold role and content",
            hint='{"role", "content"}, or {"from", "value"}',
            rule="data-message-form",
        )
    extra = [key for key, value in message.items() if key not in names and value is not None]
    if extra:
        raise DataError(
            f"{which} holds {extra[0]!r}: only {names[0]} and {names[1]} are read", rule="data-message-form"
        )
    role, content = (message[name] for name in names)
    role = _SHAREGPT.get(role, role) if names[0] == "from" else role
    if role not in ROLES:
        raise DataError(
            f"{which} has the role {role!r}{did_you_mean(str(role), ROLES)}", hint=", ".join(ROLES), rule="data-role"
        )
    if not isinstance(content, str):
        raise DataError(f"{which}: {names[1]} must be text, not {kind(content)}", rule="data-message-form")
    return {"role": role, "content": content}


def _dialogue(text: str) -> list[Message]:
    """Turns as HH-RLHF writes them, one after the other in one text. Two of one side are one; an empty end is none."""
    _, *parts = _HH_TURN.split(text)
    turns: list[Message] = []
    for who, said in zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True):
        if turns and turns[-1]["role"] == _HH[who]:
            said = f"{turns.pop()['content']}\n\n{said}"
        turns.append({"role": _HH[who], "content": said})
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _plain(row: Mapping[str, Any]) -> tuple[list[Message], dict[str, list[Message] | None]]:
    """Two texts that begin with one prompt. Each keeps at least its last word for the answer."""
    words = [re.findall(r"\s*\S+", str(row[name])) for name in ("chosen", "rejected")]
    alike = list(takewhile(lambda pair: pair[0] == pair[1], zip(words[0][:-1], words[1][:-1], strict=False)))
    if not alike:
        raise DataError(
            "'chosen' and 'rejected' begin with no prompt in common",
            hint="give each row its 'prompt'",
            rule="data-no-prompt",
        )
    answers = ["".join(each[len(alike) :]).strip() for each in words]
    edited = row.get("edited")
    prompt: list[Message] = [{"role": "user", "content": "".join(word for word, _ in alike)}]
    made = {name: parsed(name, text, "assistant") for name, text in zip(("chosen", "rejected"), answers, strict=True)}
    return prompt, {**made, "edited": None if edited is None else _answer("edited", edited, prompt)}


def _answer(name: str, value: Any, prompt: Sequence[Message]) -> list[Message]:
    """The turns of an answer to `prompt`, which may stand before them once more."""
    messages = parsed(name, value, "assistant")
    if messages[: len(prompt)] == list(prompt):
        messages = messages[len(prompt) :] or [{"role": "assistant", "content": ""}]  # a dialogue that ends unanswered
    roles = [message["role"] for message in messages]
    if roles[0] != "assistant" or roles[-1] != "assistant" or "system" in roles:
        raise DataError(
            f"{name!r} must begin and end with a turn of the assistant",
            hint="after the prompt's own turns",
            rule="data-turns",
        )
    return messages


def _until_user(messages: Sequence[Message]) -> list[Message]:
    last = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return list(messages[: last + 1])


def _checked(messages: list[Message]) -> list[Message]:
    if any(message["role"] == "system" for message in messages[1:]):
        raise DataError("a system message must be the first", rule="data-turns")
    if not messages:
        raise DataError(
            "there is no prompt: no message of a user, with which both answers begin, was found", rule="data-no-prompt"
        )
    if messages[-1]["role"] != "user":
        raise DataError(f"the last message must be the user's, not the {messages[-1]['role']}'s", rule="data-turns")
    if not messages[-1]["content"].strip():
        raise DataError("the prompt is empty", rule="data-no-prompt")
    return messages


def kind(value: Any) -> str:
    """The JSON type of a value, in words for an error message."""
    names = {str: "text", bool: "true or false", type(None): "null", list: "a list", dict: "an object"}
    if value == [] and isinstance(value, list):
        return "an empty list"
    return names.get(type(value), "a number")
