"""HTTP client for OpenAI-compatible servers, used by engines and judges.

Replies are limited in size and time, and redirects are not followed. Transient faults (a lost connection, an overload)
are retried for `patience` seconds, invalid replies a few times, refusals never.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from posttrain.errors import EngineError, InputError

BYTES_A_TOKEN = 512  # of an answer in JSON, its log-probs with it: on average, and more than any tokenizer comes to
BYTES_BESIDE = 64 << 10  # usage, ids, settings that are sent back
WRONG_REPLIES = 3  # of one request, then it is given up
_LATER = {408, 409, 425, 429}
_LONGEST_PAUSE = 60.0  # seconds, however much longer a server asks for
_ERROR_BYTES = 4096  # of what a server says of an error

K = TypeVar("K")
T = TypeVar("T")


class Fault(Exception):
    """A rejected reply, with its rule. `tries`: attempts in all after such a fault; None: until `patience` is over.
    `pause`: seconds to wait that the server asks for."""

    def __init__(self, problem: str, *, rule: str, tries: int | None = WRONG_REPLIES, pause: float = 0.0) -> None:
        super().__init__(problem)
        self.problem, self.rule, self.tries, self.pause = problem, rule, tries, pause


class Refused(EngineError):
    """The server refuses the request. `status`: of HTTP; `resent`: how often it was sent again before."""

    def __init__(self, message: str, status: int, problem: str, resent: int) -> None:
        super().__init__(message, rule="server-refuses")
        self.status, self.problem, self.resent = status, problem, resent


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes

    @property
    def said(self) -> str:
        """For messages. What it holds is not ours: whoever prints it escapes it."""
        return f"{self.status} {self.body[:300].decode(errors='replace')}"


@dataclass(frozen=True)
class Waiting:
    """`reply`: seconds for a whole reply; `connect`: for a connection; `patience`: for one request while the server
    fails."""

    reply: float
    connect: float
    patience: float


class OpenAIClient:
    """Sends `at_once` requests at a time to one server, from its own thread.

    `called`: the server's name in messages; `kept`: their sentence about finished work. `faults`: rejected replies by
    rule; `resent`: requests that were sent again.

    Raises:
        InputError: the address is invalid.
    """

    def __init__(
        self,
        url: str,
        waiting: Waiting,
        at_once: int,
        *,
        called: str,
        kept: str,
        headers: Mapping[str, str] | None = None,
        trust_env: bool = True,
    ) -> None:
        import httpx2 as httpx

        self.url, self.called, self.kept, self.waiting = url, called, kept, waiting
        self.faults: Counter[str] = Counter()
        self.resent = 0
        self.on_failure: Callable[[], Awaitable[None]] | None = None  # before a request is sent again
        self._patient_from = 0.0
        self._transport_error = httpx.TransportError
        try:
            if not urlsplit(url).hostname or urlsplit(url).port == 0:  # where the port is none, asking for it raises
                raise ValueError("no host, or no valid port")
            self._open = functools.partial(
                httpx.AsyncClient,
                base_url=url,
                headers={**(headers or {}), "Accept-Encoding": "identity"},
                timeout=httpx.Timeout(None, connect=waiting.connect),  # of a whole reply: see `send`
                limits=httpx.Limits(max_connections=1),
                verify=urlsplit(url).scheme == "https" and httpx.create_ssl_context(),  # read once, since that is slow
                trust_env=trust_env,
                follow_redirects=False,
            )
            # One for each connection, the last used first: a pool of many looks at all of them with every request.
            self._idle = [self._open()]
        except (httpx.InvalidURL, ValueError) as error:
            raise InputError(
                f"{called} has no valid URL: {error}",
                hint="`url` is http:// or https://, then the host's name and, after a colon, its port",
                rule="server-address",
            ) from error
        self._room = asyncio.Semaphore(at_once)
        self._open_or_closed, self._closed = threading.Lock(), False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-client", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin `work`; its future can be waited for, and cancelled, by any thread. Cancelled at once after `close`."""
        with self._open_or_closed:  # what is begun before a close is known to it
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise CancelledError

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.submit(work).result()

    def as_done(self, work: Iterable[tuple[K, Coroutine[Any, Any, T]]]) -> Iterator[tuple[K, T]]:
        """Begins all of `work`; yields each one's key and result as they come. If one fails, or no more are taken, the
        rest is cancelled."""
        waiting = {self.submit(each): key for key, each in work}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            for each in waiting:
                each.cancel()
            raise

    def close(self) -> None:
        """End what is under way, and the connections."""
        with self._open_or_closed:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for client in self._idle:
            await client.aclose()

    async def post(self, path: str, body: Mapping[str, Any], longest: int, read: Callable[[bytes], T]) -> tuple[T, int]:
        """The reply parsed by `read`, and how often the request was resent. `longest`: most bytes of the reply.

        Raises:
            Refused: the server refuses this request.
            EngineError: it redirects, fails for longer than `patience`, or gives invalid replies.
        """
        async with self._room:
            wait, since, wrong, resent = 0.25, time.monotonic(), 0, 0
            while True:
                try:
                    reply = await self.send("POST", path, longest, self.waiting.reply, body)
                    if reply.status < 400:
                        return read(reply.body), resent
                    self.faults["server-refuses"] += 1
                    raise Refused(f"{self.called} refuses a request: {reply.said}", reply.status, reply.said, resent)
                except Fault as fault:
                    self.faults[fault.rule] += 1
                    wrong += fault.tries is not None
                    if self.on_failure is not None:
                        await self.on_failure()
                    waited = time.monotonic() - max(since, self._patient_from)
                    if (fault.tries is not None and wrong >= fault.tries) or waited + wait > self.waiting.patience:
                        raise self._given_up(fault, time.monotonic() - since, resent + 1) from None
                    pause = min(max(wait, fault.pause), _LONGEST_PAUSE, self.waiting.patience - waited)
                resent += 1
                self.resent += 1
                await asyncio.sleep(pause)
                wait = min(2 * wait, 10.0)

    def _given_up(self, fault: Fault, seconds: float, times: int) -> EngineError:
        how = "gave no answer" if fault.tries is None else "gave nothing that can be taken"
        detail = f" in {seconds:.0f} s, asked {times} times" if times > 1 or fault.tries is None else ""
        return EngineError(f"{self.called} {how}{detail}: {fault.problem}. {self.kept}", rule=fault.rule)

    def restart_retry_time(self) -> None:
        """Restarts the retry time of all requests: the server was started again."""
        self._patient_from = time.monotonic()

    async def send(
        self, method: str, path: str, longest: int, seconds: float, body: Mapping[str, Any] | None = None
    ) -> Reply:
        """One reply, read completely within `seconds`; only the beginning of an error's body.

        Raises:
            Fault: the connection fails, the server is overloaded or fails, or the reply may not be read.
        """
        client = self._idle.pop() if self._idle else self._open()
        try:
            async with asyncio.timeout(seconds), client.stream(method, path, json=body) as reply:
                if 300 <= reply.status_code < 400:
                    to = reply.headers.get("location", "nowhere")[:300]
                    raise Fault(f"it redirects to {to}: redirects are not followed", rule="server-redirect", tries=1)
                if reply.status_code >= 400:
                    begins = await _beginning(reply, _ERROR_BYTES - 1)  # compressed, it stays so: it is only shown
                    said = Reply(reply.status_code, begins[:_ERROR_BYTES])
                    if reply.status_code >= 500 or reply.status_code in _LATER:
                        pause = _seconds(reply.headers.get("retry-after"))
                        raise Fault(said.said, rule="server-overloaded", tries=None, pause=pause)
                    return said
                raw = await _beginning(reply, longest)
                if len(raw) > longest:
                    raise _too_large(longest)
                return Reply(reply.status_code, _decoded(raw, reply.headers.get("content-encoding", ""), longest))
        except TimeoutError:
            problem = f"the request timed out: no whole reply in {seconds:g} s"
            raise Fault(problem, rule="server-slow", tries=None) from None
        except self._transport_error as error:
            raise Fault(str(error) or type(error).__name__, rule="server-away", tries=None) from error
        finally:
            self._idle.append(client)


async def _beginning(reply: Any, most: int) -> bytes:
    """The body as it is sent, whole or little more than its first `most` bytes; the rest is not waited for."""
    parts, size = [], 0
    async for part in reply.aiter_raw():
        parts.append(part)
        size += len(part)
        if size > most:
            break
    return b"".join(parts)


def _decoded(raw: bytes, encoding: str, longest: int) -> bytes:
    """The body as it was before it was compressed: gzip and zlib, though no encoding was asked for; no other."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return raw
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Fault(f"the reply has the encoding {encoding[:60]!r}, which was not requested", rule="server-encoding")
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
    try:
        body = unpacking.decompress(raw, longest + 1)
    except zlib.error as error:
        raise Fault(f"the reply is not valid {encoding}: {error}", rule="server-encoding") from error
    if len(body) > longest:
        raise _too_large(longest)
    if not unpacking.eof or unpacking.unused_data:
        raise Fault(f"the reply is not exactly one {encoding} stream", rule="server-encoding")
    return body


def _too_large(longest: int) -> Fault:
    return Fault(f"the reply is longer than {longest:,} bytes, more than was requested", rule="server-too-large")


def _seconds(retry_after: str | None) -> float:
    """Seconds to wait by a Retry-After header; 0 for a date, since clocks differ, and for anything invalid."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after or 0))  # 0 of nan, too
    return 0.0
