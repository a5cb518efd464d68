"""Client for a judge behind an OpenAI-compatible server: chat completions, retried with backoff."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from posttrain.config import JudgeModel
from posttrain.engines.openai_client import BYTES_A_TOKEN, BYTES_BESIDE, OpenAIClient, Refused, Waiting
from posttrain.engines.replies import ChatCompletions, only, parsed
from posttrain.errors import EngineError, RewardError

_TEXT_AT_FAULT = {400, 413, 422}  # of this text (too long, say), not of the server
_LIMITS = ("max_tokens", "max_completion_tokens")  # as servers call the longest answer
# Bytes of a reply whose length is not known here: `body` may take our limit out, put another one in its place, or ask
# for log-probs. 32,768 tokens as they are counted elsewhere; of plain text, some three million.
_MOST = 16 << 20


@dataclass(frozen=True)
class Question:
    """A request to the judge. `seed` differs from attempt to attempt."""

    text: str
    temperature: float
    seed: int


@dataclass(frozen=True)
class Reply:
    """The judge's reply. `refused`: why the judge cannot take this text. `resent`: how often the request was resent."""

    text: str
    cut_off: bool = False
    refused: str | None = None
    resent: int = 0


class Endpoint:
    """Sends `at_once` requests at a time to a server. Connections are kept open until `close`."""

    def __init__(self, model: JudgeModel) -> None:
        self.model = model
        self._client = OpenAIClient(
            str(model.url).rstrip("/"),
            Waiting(reply=model.timeout, connect=min(10.0, model.timeout), patience=model.patience),
            model.at_once,
            called=f"the judge {model.called}",
            kept="What it had judged is kept; the same command goes on from there",
            headers=_headers(model),
        )
        self._longest = _longest(model)

    def close(self) -> None:
        self._client.close()

    @property
    def faults(self) -> Counter[str]:
        """Rejected replies, by rule."""
        return self._client.faults

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """Each question's index and reply, as they come.

        Raises:
            EngineError: the server refuses all our requests, fails for longer than `patience`, or gives replies that
                are not chat completions.
        """
        return self._client.as_done((index, self._ask(question)) for index, question in enumerate(questions))

    async def _ask(self, question: Question) -> Reply:
        body = {
            "model": self.model.model,
            "messages": [{"role": "user", "content": question.text}],
            "temperature": question.temperature,
            "max_tokens": self.model.max_tokens,
            "seed": question.seed,
            **self.model.body,
        }
        body = {name: value for name, value in body.items() if value is not None}
        try:
            (text, cut_off), resent = await self._client.post("chat/completions", body, self._longest, _read)
        except Refused as refused:
            if refused.status in _TEXT_AT_FAULT:
                return Reply("", refused=refused.problem, resent=refused.resent)
            raise self._refusal(refused) from refused
        return Reply(text, cut_off, resent=resent)

    def _refusal(self, refused: Refused) -> EngineError:
        if refused.status in (401, 403):
            named = f"the key in {self.model.api_key_env}" if self.model.api_key_env else "`api_key_env`"
            return EngineError(
                f"the judge {self.model.called} denies access: {refused.problem}. Check {named}", rule="judge-key"
            )
        return EngineError(
            f"the judge {self.model.called} refuses requests: {refused.problem}. Check `url` (most end with /v1) and "
            "`model`",
            rule=refused.rule,
        )


def _longest(model: JudgeModel) -> int:
    """The largest reply in bytes."""
    allowed = [model.max_tokens, *(model.body.get(name) for name in _LIMITS)]
    limit = BYTES_BESIDE + BYTES_A_TOKEN * max(each for each in allowed if isinstance(each, int))
    return max(limit, _MOST) if model.body else limit


def _headers(model: JudgeModel) -> dict[str, str]:
    if model.api_key_env is None:
        return {}
    key = os.environ.get(model.api_key_env, "").strip()
    if not key:
        raise RewardError(
            f"the judge {model.called} needs an API key, and the environment variable {model.api_key_env} is not set",
            hint=f"export {model.api_key_env}=…",
            rule="judge-key-not-set",
        )
    return {"Authorization": f"Bearer {key}"}


def _read(body: bytes) -> tuple[str, bool]:
    """The text of a reply, and whether it was cut off. Null content is an empty text. Raises Fault."""
    choice = only(parsed(ChatCompletions, body).choices)
    return choice.message.content or "", choice.finish_reason == "length"
