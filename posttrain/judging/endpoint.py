"""A judge behind an OpenAI-compatible server: chat completions, sent again with backoff while the server fails."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from posttrain.errors import EngineError, RewardError
from posttrain.recipe import JudgeModel

_TEXT_AT_FAULT = {400, 413, 422}  # of this text (too long, say), not of the server
_LATER = {408, 409, 425, 429}


@dataclass(frozen=True)
class Question:
    """What is asked. `seed` differs from one time of asking to the next."""

    text: str
    temperature: float
    seed: int


@dataclass(frozen=True)
class Reply:
    """What came back. `refused`: the judge cannot take this text, and why. `resent`: so often it was sent again."""

    text: str
    cut_off: bool = False
    refused: str | None = None
    resent: int = 0


class Endpoint:
    """Asks a server, `at_once` requests at a time. Use it as a context: connections are kept within."""

    def __init__(self, model: JudgeModel) -> None:
        import httpx2 as httpx

        self.model = model
        self._address = f"{str(model.url).rstrip('/')}/chat/completions"
        self._client = httpx.Client(
            headers=_headers(model),
            timeout=httpx.Timeout(model.timeout, connect=min(10.0, model.timeout)),
            verify=self._address.startswith("https:"),  # reading the certificates takes longer than to ask
            limits=httpx.Limits(max_connections=model.at_once, max_keepalive_connections=model.at_once),
        )
        self._transport_error = httpx.TransportError
        self._over = threading.Event()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def replies(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """Each question's index and reply, as they come.

        Raises:
            EngineError: the server refuses our requests as such, or fails for longer than `patience`.
        """
        pool = ThreadPoolExecutor(self.model.at_once)
        waiting = {pool.submit(self._ask, question): index for index, question in enumerate(questions)}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            self._over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()

    def _ask(self, question: Question) -> Reply:
        body = {
            "model": self.model.model,
            "messages": [{"role": "user", "content": question.text}],
            "temperature": question.temperature,
            "max_tokens": self.model.max_tokens,
            "seed": question.seed,
            **self.model.body,
        }
        body = {name: value for name, value in body.items() if value is not None}
        wait, resent, since = 0.25, 0, time.monotonic()
        while not self._over.is_set():
            pause = 0.0
            try:
                reply = self._client.post(self._address, json=body)
                problem = f"{reply.status_code} {reply.text[:300]}"
                if reply.status_code < 400:
                    return _read(reply.json(), resent)
                if reply.status_code in _TEXT_AT_FAULT:
                    return Reply("", refused=problem, resent=resent)
                if reply.status_code < 500 and reply.status_code not in _LATER:
                    raise EngineError(self._refusal(reply.status_code, problem))
                pause = _seconds(reply.headers.get("retry-after"))
            except self._transport_error as error:
                problem = str(error) or type(error).__name__
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                problem = f"the reply is no chat completion ({type(error).__name__}: {error})"
            if time.monotonic() - since + wait > self.model.patience:
                raise EngineError(
                    f"the judge {self.model.called} gave no answer in {time.monotonic() - since:.0f} s, asked "
                    f"{resent + 1} times: {problem}. What it had judged is kept; the same command goes on from there"
                )
            resent += 1
            self._over.wait(max(wait, min(pause, 60.0)))
            wait = min(2 * wait, 10.0)
        raise EngineError("judging was stopped")

    def _refusal(self, status: int, problem: str) -> str:
        if status in (401, 403):
            named = f"the key in {self.model.api_key_env}" if self.model.api_key_env else "`api_key_env`"
            return f"the judge {self.model.called} does not let us in: {problem}. Check {named}"
        return f"the judge {self.model.called} refuses requests: {problem}. Check `url` (most end with /v1) and `model`"


def _headers(model: JudgeModel) -> dict[str, str]:
    if model.api_key_env is None:
        return {}
    key = os.environ.get(model.api_key_env, "").strip()
    if not key:
        raise RewardError(
            f"the judge {model.called} needs a key, and the environment variable {model.api_key_env} is not set",
            hint=f"export {model.api_key_env}=…",
        )
    return {"Authorization": f"Bearer {key}"}


def _read(said: Mapping[str, Any], resent: int) -> Reply:
    """Raises LookupError or TypeError where it is no chat completion. Content may be null: then nothing was said."""
    choice = said["choices"][0]
    content = choice["message"]["content"]
    if not isinstance(content, str | None):
        raise TypeError("content is no text")
    return Reply(content or "", choice.get("finish_reason") == "length", resent=resent)


def _seconds(retry_after: str | None) -> float:
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:  # a date
        return 0.0
