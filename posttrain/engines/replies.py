"""Parses servers' replies: strict in types and counts, ignoring further fields."""

from __future__ import annotations

import reprlib
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posttrain.engines.openai_client import Fault

_SHOWN = 120  # characters of what a reply holds in a message


class _Read(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


Ids = Annotated[list[int], Field(fail_fast=True)]
Floats = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(fail_fast=True)]


class Usage(_Read):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class LogProbs(_Read):
    token_logprobs: Floats | None = None


class Choice(_Read):
    """One answer as text, and as ids if the server gives them."""

    index: int = 0
    text: str | None = None
    finish_reason: str | None
    token_ids: Ids | None = None
    logprobs: LogProbs | None = None


class Completions(_Read):
    choices: Annotated[list[Choice], Field(fail_fast=True)]
    usage: Usage | None = None


class Message(_Read):
    content: str | None


class ChatChoice(_Read):
    index: int = 0
    message: Message
    finish_reason: str | None = None


class ChatCompletions(_Read):
    choices: Annotated[list[ChatChoice], Field(fail_fast=True)]


class Served(_Read):
    """A served model, from `/v1/models`, `/get_model_info` or `/info`."""

    root: str | None = None
    id: str | None = None
    model_path: str | None = None
    model_id: str | None = None

    @property
    def names(self) -> list[str]:
        return [name for name in (self.root, self.id, self.model_path, self.model_id) if name]


class About(Served):
    data: Annotated[list[Served], Field(fail_fast=True)] | None = None


R = TypeVar("R", bound=BaseModel)
C = TypeVar("C", Choice, ChatChoice)


def parsed(kind: type[R], body: bytes) -> R:
    """The reply as one of the above.

    Raises:
        Fault: it is no JSON (or nested too deep, or no Unicode), or not of that shape.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            begins = reprlib.repr(body[:_SHOWN].decode(errors="replace"))
            raise Fault(f"the reply is not JSON ({first['msg']}): {begins}", rule="server-no-json") from None
        place = ".".join(map(str, first["loc"])) or "the reply"
        what = f"{first['msg']}, not {type(first['input']).__name__}"
        raise Fault(f"the reply has the wrong structure: {place}: {what}", rule="server-wrong-shape") from None


def only(choices: list[C]) -> C:
    """The single answer of a reply.

    Raises:
        Fault: there is none, there are several, or it says that it is another.
    """
    if len(choices) != 1 or choices[0].index != 0:
        what = f"{len(choices)} answers" if len(choices) != 1 else "an answer with another index"
        raise Fault(f"it returned {what} where one was requested", rule="server-wrong-count")
    return choices[0]
