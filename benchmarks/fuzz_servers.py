"""Gives our engine and our judges replies of servers that are broken in many ways, and counts by rule what comes of it.

    python benchmarks/fuzz_servers.py --inputs 5000

Each input is a reply as vLLM, SGLang, text-generation-inference, `transformers serve` or a judge's server give it, with
random changes of its structure, its bytes, or how it is sent (headers, encodings, bodies that never end), from a server
on this machine. What may come of it: an answer that is within what was asked for, or an error of ours with its rule.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gzip
import json
import math
import random
import socket
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hostile

from posttrain.config import JudgeModel
from posttrain.engines import Request, SamplingParams, ServerSettings
from posttrain.engines.server import ServerEngine
from posttrain.rewards import judge_prompt, rubric
from posttrain.rewards.judge import load

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support import parrot  # a model of a few kilobytes
from support.tiny_models import EOS

SECONDS = 0.5  # for a whole reply
PARAMS = SamplingParams(1.0, 8)
IDS = [20, 21, 22, EOS]
PROMPT = (20, 21)
TEXTS = ("What is 2 + 3?", "2 + 3 is 5.")
RUBRIC = rubric.load("quality.md")
_LEFT = "redirected"  # where redirects lead: nobody may go there
_USAGE = {"prompt_tokens": len(PROMPT), "completion_tokens": len(IDS), "total_tokens": len(PROMPT) + len(IDS)}


@dataclass(frozen=True)
class Kind:
    """One kind of server: what is at `path` is broken, the rest of `pages` is as it should be."""

    name: str
    path: str
    pages: dict[str, Any]


def kinds(folder: str) -> list[Kind]:
    logprobs = {
        "text_offset": [0, 1, 2, 3],
        "token_logprobs": [-0.5, -1.25, -2.0, -0.01],
        "tokens": ["a", "b", "c", "</s>"],
        "top_logprobs": [{"a": -0.5}, {"b": -1.25}, {"c": -2.0}, {"</s>": -0.01}],
    }
    choice = {"index": 0, "text": "abc", "finish_reason": "stop", "stop_reason": None, "token_ids": IDS}
    top = {"id": "cmpl-1", "object": "text_completion", "created": 1764000000, "model": folder, "usage": _USAGE}
    vllm = {**top, "choices": [{**choice, "logprobs": logprobs, "prompt_logprobs": None}]}
    text = {**top, "choices": [{"index": 0, "text": "abc", "logprobs": None, "finish_reason": "eos_token"}]}
    card = {"id": folder, "object": "model", "owned_by": "vllm", "root": folder, "parent": None, "max_model_len": 64}
    models = {"object": "list", "data": [card, {**card, "id": "other", "root": "/models/other"}]}
    info = {"model_id": folder, "model_dtype": "float16", "max_input_tokens": 32, "version": "3.3"}
    said = f"It is right.\nScore {judge_prompt.question(RUBRIC, *TEXTS)[1]}: 4"
    message = {"role": "assistant", "content": said, "refusal": None, "reasoning_content": None, "tool_calls": []}
    chat = {**top, "object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    asked, chat_at = "/v1/completions", "/v1/chat/completions"
    sglang = {"/get_model_info": {"model_path": folder, "is_generation": True}, asked: {**vllm, "metadata": {}}}
    return [
        Kind("vllm", asked, {"/v1/models": models, asked: vllm}),
        Kind("vllm", "/v1/models", {"/v1/models": models, asked: vllm}),
        Kind("sglang", asked, sglang),
        Kind("sglang", "/get_model_info", sglang),
        Kind("tgi", asked, {"/info": info, asked: text}),
        Kind("tgi", "/info", {"/info": info, asked: text}),
        Kind("transformers", asked, {asked: text}),
        Kind("judge", chat_at, {chat_at: chat}),
        Kind("judge", chat_at, {chat_at: {**chat, "system_fingerprint": "fp", "service_tier": "default"}}),
    ]


# Changes of a reply

ODD: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, -1e308, math.nan, math.inf, 10**30, 10**18, "", "x", "9", "\ud800",
    "\x1b[2J\x1b]0;t\x07", "\u202etxt", "\0", [], {}, [[]], [None], ["1", "2"], [-1], [10**9], [1.0, 2.0], {"a": 1},
    [{}], "a" * 100_000, [1] * 100_000, "stop", "length", 1, 8, 9,
]  # fmt: skip
BREAKS = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"{", b"}", b"[", b"]", b'"', b":", b",", b"NaN", b"-Infinity",
    b"1e999", b"9" * 400, b"9" * 5000, b"\\ud800", b"\\u0000", b"[" * 3000, b'{"a":' * 2000, b"null", b"data: ",
    b"<html><body>502",
]  # fmt: skip


def restructured(reply: Any, random_: random.Random) -> Any:
    """The reply with one to three of its values replaced, removed, repeated, wrapped or renamed."""
    whole = [copy.deepcopy(reply)]
    for _ in range(random_.choice((1, 1, 2, 3))):
        places = list(_places(whole))
        holder, key = random_.choice(places)
        value, kind = holder[key], random_.randrange(6)
        if kind <= 2:
            holder[key] = copy.deepcopy(random_.choice(ODD))
        elif kind == 3 and isinstance(holder, dict):
            del holder[key]
        elif kind == 4 and isinstance(value, list) and len(json.dumps(value)) < 2000:
            holder[key] = value * random_.choice((0, 2, 3, 1000))
        elif kind == 5 and isinstance(value, (int, float)):
            holder[key] = str(value)
        else:
            holder[key] = [value] if random_.random() < 0.5 else {"value": value}
    return whole[0]


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys: Sequence[Any] = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list) and len(value[key]) < 1000:
            found += _places(value[key])
    return found


def broken(body: bytes, random_: random.Random) -> bytes:
    """The body with one to four places cut out or written over."""
    made = bytearray(body)
    for _ in range(random_.choice((1, 1, 2, 4))):
        at = random_.randint(0, len(made))
        to = min(len(made), at + random_.choice((0, 0, 1, 5, 40)))
        made[at:to] = random_.choice((b"", bytes([random_.randrange(256)]), random_.choice(BREAKS)))
    return bytes(made)


@dataclass(frozen=True)
class Sent:
    """`first` at once, then `then` again and again every `every` seconds, until nobody listens."""

    first: bytes
    then: bytes = b""
    every: float = 0.0


def plain(body: bytes, *headers: str, status: str = "200 OK", length: str | None = None) -> bytes:
    said = f"Content-Length: {len(body) if length is None else length}"
    lines = [f"HTTP/1.1 {status}", said, "Connection: close", *headers]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body


def sent_oddly(body: bytes, random_: random.Random) -> Sent:
    """The body as it should be, but for how it is sent."""
    bomb = gzip.compress(bytes(50 << 20))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    noise = (b"", b"SSH-2.0-x\r\n", b"\x16\x03\x01", b"HTTP/9.9 200 OK\r\n\r\n", b"<html>502")
    statuses = ("301 Moved", "302 Found", "307 Temporary", "308 Permanent", "204 No Content", "206 Part", "304 Same",
                "400 Bad", "401 No", "404 Not", "413 Large", "418 Tea", "429 Later", "500 Oops", "503 Busy", "599 x",
                "999 x", "99 x", "-1 x", "20x OK", "200")  # fmt: skip
    waits = ("inf", "-inf", "nan", "1e999", "-5", "9" * 5000, "soon", "Fri, 31 Dec 9999 23:59:59 GMT", "\x1b[2J", "")
    lengths = ("0", "1", "10", "999999999999", "-1", "x", "9" * 400, "1,1", " ")
    status, wait = random_.choice(statuses), random_.choice(waits)
    to = f"Location: {random_.choice((f'/{_LEFT}', 'http://[', 'file:///etc/passwd', chr(27) + '[2J', '/' * 5000))}"
    ways: list[Callable[[], Sent]] = [
        lambda: Sent(plain(body, to, f"Retry-After: {wait}", status=status)),
        lambda: Sent(plain(body, f"Retry-After: {wait}", status="429 Later")),
        lambda: Sent(plain(body, to, status="307 There")),
        lambda: Sent(plain(body, length=random_.choice(lengths))),
        lambda: Sent(plain(gzip.compress(body), "Content-Encoding: gzip")),
        lambda: Sent(plain(zlib.compress(body), "Content-Encoding: deflate")),
        lambda: Sent(plain(broken(gzip.compress(body), random_), "Content-Encoding: gzip")),
        lambda: Sent(plain(gzip.compress(body)[:-9], "Content-Encoding: GZIP ")),
        lambda: Sent(plain(body, f"Content-Encoding: {random_.choice(('gzip', 'br', 'zstd', 'deflate', 'x' * 999))}")),
        lambda: Sent(plain(gzip.compress(gzip.compress(body)), "Content-Encoding: gzip, gzip")),
        lambda: Sent(plain(bomb, "Content-Encoding: gzip")),
        lambda: Sent(plain(gzip.compress(bomb), "Content-Encoding: gzip, gzip")),
        lambda: Sent(head + b"\r\n" + body, b" " * 65536),  # no end
        lambda: Sent(plain(b"", length="1073741824"), b"[" * 65536),
        lambda: Sent(plain(body, status="500 Oops", length="1073741824"), b"\x1b[2J" * 9999),
        lambda: Sent(chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
        lambda: Sent(chunked + b"%s\r\n" % random_.choice((b"-5", b"zz", b"f" * 30, b"ffffffff"))),
        lambda: Sent(chunked, b"1\r\n[\r\n", 0.05),
        lambda: Sent(head + b"Content-Length: 9999\r\n\r\n", b"[", 0.05),
        lambda: Sent(b"HTTP/1.1 200 OK\r\nX-", b"a", 0.05),
        lambda: Sent(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
        lambda: Sent(head + b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n" + body),
        lambda: Sent(head + b"X-Many: 1\r\n" * 5000 + b"\r\n" + body),
        lambda: Sent(broken(plain(body), random_)),
        lambda: Sent(broken(head, random_) + b"\r\n" + body),
        lambda: Sent(random_.choice(noise)),
    ]  # fmt: skip
    return random_.choice(ways)()


def mutation(reply: Any, random_: random.Random) -> Sent:
    chance = random_.random()
    if chance < 0.6:
        return Sent(plain(json.dumps(restructured(reply, random_)).encode()))
    if chance < 0.85:
        return Sent(plain(broken(json.dumps(reply).encode(), random_)))
    return sent_oddly(json.dumps(reply).encode(), random_)


# A server that sends them


class Server:
    """Sends what `pages` has for a path, then hangs up. `visited`: the paths that were asked for."""

    def __init__(self) -> None:
        self.pages: dict[str, Sent] = {}
        self.visited: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                path = self._read(connection)
                self.visited.append(path)
                sent = self.pages.get(path, Sent(plain(b"{}")))
                connection.sendall(sent.first)
                while sent.then:
                    connection.sendall(sent.then)
                    time.sleep(sent.every)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has hung up on us

    def _read(self, connection: socket.socket) -> str:
        got = b""
        while b"\r\n\r\n" not in got:
            got += connection.recv(65536) or b"\r\n\r\n"
        head, _, body = got.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        left = (int(lengths[0].split(b":")[1]) if lengths else 0) - len(body)
        while left > 0:
            left -= len(connection.recv(65536)) or left
        return [*head.split(b" "), b""][1].decode()


# What is tried


@functools.cache
def _server() -> Server:
    return Server()  # one in each child


class Reader:
    """Puts broken replies to the engines of a warm process. A case is the seed of its changes."""

    def __init__(self, folder: Path, kinds_: Sequence[Kind]) -> None:
        self.kinds = kinds_
        self.engines = {
            name: ServerEngine(folder, ServerSettings(name, None, "", ""), answer_seconds=SECONDS)
            for name in ("vllm", "sglang", "tgi", "transformers")
        }

    def described(self, case: int) -> str:
        kind, pages = self._made(case)
        return f"{kind.name} {kind.path}: {pages[kind.path].first[:600]!r}"

    def _made(self, case: int) -> tuple[Kind, dict[str, Sent]]:
        random_ = random.Random(case)
        kind = random_.choice(self.kinds)
        pages = {path: Sent(plain(json.dumps(reply).encode())) for path, reply in kind.pages.items()}
        return kind, {**pages, kind.path: mutation(kind.pages[kind.path], random_)}

    def __call__(self, case: int) -> None:
        server = _server()
        kind, server.pages = self._made(case)
        server.visited.clear()
        url = f"http://127.0.0.1:{server.port}"
        patience = 0.3 if case % 50 == 0 else 0.0  # asked again, or given up at once
        if kind.name == "judge":
            self._judge(url, patience)
        else:
            self._sample(self.engines[kind.name], url, patience)
        assert not any(_LEFT in path for path in server.visited), "a redirect was followed"

    def _judge(self, url: str, patience: float) -> None:
        model = JudgeModel(url=f"{url}/v1", model="big", attempts=1, timeout=SECONDS, patience=patience)
        (score,) = load(RUBRIC, model).scores([TEXTS])
        assert score is None or RUBRIC.lowest <= score <= RUBRIC.highest

    def _sample(self, engine: ServerEngine, url: str, patience: float) -> None:
        engine = copy.copy(engine)  # which is ended for good below; what it read of the model is kept
        engine.settings = replace(engine.settings, url=url)
        engine.waiting = replace(engine.waiting, patience=patience)
        try:
            ((made,),) = engine.generate([Request(PROMPT, (7,))], PARAMS)
        finally:
            engine.close()
        longest = PARAMS.max_new_tokens * (1 if engine.capabilities.token_ids else 3)
        assert len(made.tokens) <= longest and all(0 <= an_id < len(engine.tokenizer) for an_id in made.tokens)
        assert made.finish in ("stop", "length") and made.text.encode() is not None
        assert made.logprobs is None or all(map(math.isfinite, made.logprobs))


def fuzz(inputs: int, seed: int = 0, memory: int = 1 << 30, seconds: float = 30.0) -> list[hostile.Outcome]:
    """What comes of so many broken replies, and prints it; a SystemExit of 1 where one is wrong."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = parrot.save(Path(temporary) / "model")
        reader = Reader(folder, kinds(str(folder)))
        cases = range(seed, seed + inputs)
        outcomes = hostile.run(cases, reader, seconds=seconds, memory=memory, batch=250)
        if not hostile.table("servers", outcomes, lambda at: reader.described(cases[at])):
            raise SystemExit(1)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    fuzz(asked.inputs, asked.seed)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
