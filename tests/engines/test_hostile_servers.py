"""Servers and judges that give what was not asked for: each kind by its rule, within bounds of time and memory."""

from __future__ import annotations

import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import parrot

from posttrain.config import JudgeModel
from posttrain.engines import Request, SamplingParams, ServerSettings
from posttrain.engines.server import FAULTS, ServerEngine
from posttrain.errors import EngineError, InputError
from posttrain.rewards import rubric
from posttrain.rewards.judge import load

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fuzz_servers
import hostile
from fuzz_servers import IDS, PARAMS, PROMPT, TEXTS, Sent, Server, plain

QUALITY = rubric.load("quality.md")
Asks = Callable[..., object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parrot.save(tmp_path_factory.mktemp("parrot"))


@dataclass
class Asked:
    """A server with good pages but for what a test puts at `path`, and `ask`, which samples or judges by it."""

    server: Server
    path: str
    good: Any
    ask: Asks

    def sends(self, sent: Sent | bytes | object) -> None:
        if not isinstance(sent, Sent):
            sent = Sent(plain(sent if isinstance(sent, bytes) else json.dumps(sent).encode()))
        self.server.pages[self.path] = sent


def asked(folder: Path, kind: str) -> Asked:
    server, found = Server(), next(each for each in fuzz_servers.kinds(str(folder)) if each.name == kind)
    server.pages = {path: Sent(plain(json.dumps(reply).encode())) for path, reply in found.pages.items()}
    url = f"http://127.0.0.1:{server.port}"

    def sample(patience: float = 0.0, seconds: float = 5.0, log: str = "") -> object:
        engine = ServerEngine(folder, ServerSettings(kind, None, url, log), patience, seconds)
        try:
            ((made,),) = engine.generate([Request(PROMPT, (7,))], PARAMS)
        finally:
            engine.close()
        return made

    def judge(patience: float = 0.0, seconds: float = 5.0, **keys: Any) -> object:
        model = JudgeModel(url=f"{url}/v1", model="big", attempts=1, timeout=seconds, patience=patience, **keys)
        return load(QUALITY, model).scores([TEXTS])

    return Asked(server, found.path, found.pages[found.path], judge if kind == "judge" else sample)


@pytest.fixture(params=["vllm", "judge"])
def either(request: pytest.FixtureRequest, folder: Path) -> Asked:
    return asked(folder, request.param)


@pytest.fixture
def vllm(folder: Path) -> Asked:
    return asked(folder, "vllm")


def test_good_replies_are_taken(either: Asked) -> None:
    assert either.ask() in ([4], either.ask())


# What engines and judges refuse alike


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b"<html>502 Bad Gateway</html>", "server-no-json"),
        (b"", "server-no-json"),
        (b'{"choices": ' + b"[" * 20_000, "server-no-json"),
        (b'{"choices": [], "more": ' + b"[" * 9000 + b"]" * 9000 + b"}", "server-no-json"),
        (b'{"choices": [{"message": {"content": "\\ud800"}}]}', "server-no-json"),
        (b'{"choices": [], "id": ' + b"9" * 9000 + b"}", "server-no-json"),
        (b"\xff\xfe{}", "server-no-json"),
        *((body, "server-wrong-shape") for body in (b"[]", b"null", b"7", b'"x"', b"{}", b'{"choices": null}')),
        *((b'{"choices": ' + each + b"}", "server-wrong-shape") for each in (b'"x"', b'{"0": 1}', b"[null]", b"[[1]]")),
        (b'{"choices": []}', "server-wrong-count"),
    ],
)
def test_a_body_of_another_shape(either: Asked, body: bytes, rule: str) -> None:
    either.sends(body)
    with pytest.raises(EngineError, match=rf"127\.0\.0\.1:{either.server.port}.*\[{rule}\]"):
        either.ask()


@pytest.mark.parametrize("times", [0, 2, 3])
def test_more_or_fewer_answers_than_were_asked_for(either: Asked, times: int) -> None:
    either.sends({**either.good, "choices": either.good["choices"] * times})
    with pytest.raises(EngineError, match=r"one was requested.*\[server-wrong-count\]"):
        either.ask()


def test_an_answer_of_another_place(either: Asked) -> None:
    either.sends({**either.good, "choices": [{**either.good["choices"][0], "index": 3}]})
    with pytest.raises(EngineError, match=r"\[server-wrong-count\]"):
        either.ask()


@pytest.mark.parametrize(
    ("encoding", "change"),
    [
        ("gzip", lambda body: body),
        ("gzip", lambda body: gzip.compress(body)[:-10]),
        ("gzip", lambda body: gzip.compress(body) + b"more"),
        ("gzip", lambda body: b"\x1f\x8b" + body),
        ("br", lambda body: body),
        ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
    ],
)
def test_an_encoding_that_is_not_what_it_says_or_was_not_asked_for(
    either: Asked, encoding: str, change: Callable[[bytes], bytes]
) -> None:
    either.sends(Sent(plain(change(json.dumps(either.good).encode()), f"Content-Encoding: {encoding}")))
    with pytest.raises(EngineError, match=r"\[server-encoding\]"):
        either.ask()


def test_gzip_that_nobody_asked_for_is_read_all_the_same(either: Asked) -> None:
    wanted = either.ask()
    either.sends(Sent(plain(gzip.compress(json.dumps(either.good).encode()), "Content-Encoding: gzip")))
    assert either.ask() == wanted


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_not_followed_and_no_key_goes_there(
    either: Asked, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Server()
    monkeypatch.setenv("JUDGE_KEY", "secret")
    to = f"http://127.0.0.1:{elsewhere.port}/elsewhere"
    either.sends(Sent(plain(b"", f"Location: {to}", status=f"{status} There")))
    keys = {"api_key_env": "JUDGE_KEY"} if "chat" in either.path else {}
    with pytest.raises(EngineError, match=rf"{to}.*\[server-redirect\]"):
        either.ask(patience=30.0, **keys)  # at once: it would be so again
    assert elsewhere.visited == [] and either.server.visited.count(either.path) == 1


@pytest.mark.parametrize("wish", ["inf", "nan", "-5", "999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_server_that_wants_to_be_left_alone_is_waited_for_as_long_as_patience_lasts(folder: Path, wish: str) -> None:
    judge = asked(folder, "judge")
    judge.sends(Sent(plain(b"later", f"Retry-After: {wish}", status="429 Later")))
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"429 later.*\[server-overloaded\]"):
        judge.ask(patience=0.5)
    assert time.monotonic() - began < 10.0
    assert judge.server.visited.count(judge.path) <= 2


@pytest.mark.parametrize(
    "sent",
    [
        Sent(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"[", 0.05),
        Sent(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n[\r\n", 0.05),
        Sent(b"HTTP/1.1 200 OK\r\nX-", b"a", 0.05),
        Sent(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
        Sent(b"HTTP/1.1 500 Oops\r\nContent-Length: 9999\r\n\r\n", b"x", 0.05),
    ],
    ids=["body", "chunks", "header", "informed", "error"],
)
def test_a_reply_a_byte_at_a_time_ends_with_the_time_for_a_whole_one(either: Asked, sent: Sent) -> None:
    either.sends(sent)
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no whole reply in 0.4 s.*\[server-slow\]"):
        either.ask(seconds=0.4)
    assert time.monotonic() - began < 10.0


def test_a_connection_that_is_cut(either: Asked) -> None:
    either.sends(Sent(plain(b"[", length="99")))
    with pytest.raises(EngineError, match=r"\[server-away\]"):
        either.ask()


def test_a_wrong_reply_is_asked_for_three_times_and_no_more(either: Asked) -> None:
    either.sends(b"[]")
    with pytest.raises(EngineError, match=r"asked 3 times: .*\[server-wrong-shape\]"):
        either.ask(patience=30.0)
    assert either.server.visited.count(either.path) == 3


@pytest.mark.parametrize(
    "url", ["http://a:x", "http://a\0b", "http://[::1", "http://é..", "http://127.0.0.1:99999", "http://"]
)
def test_an_address_that_is_none(url: str) -> None:
    model = JudgeModel(url=url, model="big")
    with pytest.raises(InputError, match=r"\[server-address\]"):
        load(QUALITY, model).scores([TEXTS])


BOMB = gzip.compress(bytes(1 << 30), 1)
ENDLESS = {
    "endless": Sent(b"HTTP/1.1 200 OK\r\n\r\n[", b"[" * 65536),
    "1 GB": Sent(plain(b"", length=str(1 << 30)), b'"' + b"a" * 65535),
    "chunks": Sent(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n%s\r\n" % (b" " * 65536)),
    "bomb": Sent(plain(gzip.compress(BOMB), "Content-Encoding: gzip")),
    "bomb within a bomb": Sent(plain(BOMB[:60_000], "Content-Encoding: gzip")),
    "after the end": Sent(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"{}"), gzip.compress(b"") * 4000
    ),
    "an error": Sent(plain(b"", status="400 No", length=str(1 << 30)), b"\x1b[2J" * 9999),
    "headers": Sent(b"HTTP/1.1 200 OK\r\n", b"X-Y: %s\r\n" % (b"a" * 60_000)),
}
LARGE = ("server-too-large", "server-encoding", "server-no-json", "server-refuses", "server-away")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vllm", "judge"])
def test_a_body_without_end_takes_neither_memory_nor_time(folder: Path, kind: str) -> None:
    def read(name: str) -> None:
        case = asked(folder, kind)
        case.sends(ENDLESS[name])
        case.ask(seconds=20.0)

    outcomes = hostile.run(list(ENDLESS), read, seconds=30.0, memory=1 << 30)
    told = {name: outcome.kind for name, outcome in zip(ENDLESS, outcomes, strict=True)}
    assert set(told.values()) <= {*LARGE, "read"}, told
    assert {told[name] for name in ("endless", "1 GB", "chunks")} == {"server-too-large"}
    assert max(outcome.grown for outcome in outcomes) < 100 << 20
    assert max(outcome.seconds for outcome in outcomes) < 10


# What an engine alone reads


def choice(vllm: Asked, **changes: Any) -> dict[str, Any]:
    return {**vllm.good, "choices": [{**vllm.good["choices"][0], **changes}]}


@pytest.mark.parametrize("one", ["9", 1.5, 1.0, None, True, [1], {}, "x"])
def test_token_ids_that_are_no_whole_numbers(vllm: Asked, one: object) -> None:
    vllm.sends(choice(vllm, token_ids=[20, one, 21, 1]))
    with pytest.raises(EngineError, match=r"token_ids\.1.*\[server-wrong-shape\]"):
        vllm.ask()


@pytest.mark.parametrize("one", [-1, 300, 10**6, 10**18, 10**30])
def test_token_ids_outside_the_vocabulary(vllm: Asked, one: int) -> None:
    vllm.sends(choice(vllm, token_ids=[20, one, 21, 1]))
    with pytest.raises(EngineError, match=r"token 1 of an answer is none of the 300.*\[server-token-ids\]"):
        vllm.ask()


def test_no_token_ids(vllm: Asked) -> None:
    vllm.sends(choice(vllm, token_ids=None))
    with pytest.raises(EngineError, match=r"older than.*\[server-no-token-ids\]"):
        vllm.ask()


@pytest.mark.parametrize(
    ("logprobs", "rule"),
    [
        (None, "server-logprobs"),
        ({"token_logprobs": None}, "server-logprobs"),
        ({"token_logprobs": [-1.0]}, "server-logprobs"),
        ({"token_logprobs": [-1.0, 5.0, -1.0, -1.0]}, "server-logprobs"),
        ({"token_logprobs": [-1.0, float("nan"), -1.0, -1.0]}, "server-wrong-shape"),
        ({"token_logprobs": [-1.0, float("-inf"), -1.0, -1.0]}, "server-wrong-shape"),
        ({"token_logprobs": ["-1.0"] * 4}, "server-wrong-shape"),
        ({"token_logprobs": [[-1.0]] * 4}, "server-wrong-shape"),
        ([-1.0] * 4, "server-wrong-shape"),
        ("x", "server-wrong-shape"),
    ],
)
def test_log_probs_that_are_none(vllm: Asked, logprobs: object, rule: str) -> None:
    vllm.sends(choice(vllm, logprobs=logprobs))
    with pytest.raises(EngineError, match=rf"\[{rule}\]"):
        vllm.ask()


def test_an_answer_longer_than_was_allowed_is_refused_and_not_cut(vllm: Asked, folder: Path) -> None:
    vllm.sends(choice(vllm, token_ids=[20] * 9, logprobs={"token_logprobs": [-1.0] * 9}))
    with pytest.raises(EngineError, match=r"9 tokens where 8 were allowed.*\[server-too-many-tokens\]"):
        vllm.ask()
    vllm.sends(choice(vllm, token_ids=[20] * 100_000))
    with pytest.raises(EngineError, match=r"\[server-too-large\]"):
        vllm.ask()
    tgi = asked(folder, "tgi")
    tgi.server.pages["/v1/completions"] = Sent(plain(json.dumps(choice(tgi, text="ab " * 20)).encode()))
    with pytest.raises(EngineError, match=r"60 tokens where 8 were allowed.*\[server-too-many-tokens\]"):
        tgi.ask()


@pytest.mark.parametrize(
    ("usage", "rule"),
    [
        ([1], "server-wrong-shape"),
        ({"prompt_tokens": "2"}, "server-wrong-shape"),
        ({"prompt_tokens": 3}, "server-other-prompt"),
        ({"prompt_tokens": 10**30}, "server-other-prompt"),
        ({"prompt_tokens": 2, "completion_tokens": 9}, "server-too-many-tokens"),
    ],
)
def test_what_a_server_says_it_used(vllm: Asked, usage: object, rule: str) -> None:
    vllm.sends({**vllm.good, "usage": usage})
    with pytest.raises(EngineError, match=rf"\[{rule}\]"):
        vllm.ask()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"text": 7}, "server-wrong-shape"),
        ({"finish_reason": ["stop"]}, "server-wrong-shape"),
        ({"finish_reason": None}, "server-finish-reason"),
        ({"finish_reason": "\x1b[2Jabort"}, "server-finish-reason"),
    ],
)
def test_text_and_reason(vllm: Asked, changes: dict[str, Any], rule: str) -> None:
    vllm.sends(choice(vllm, **changes))
    with pytest.raises(EngineError, match=rf"\[{rule}\]"):
        vllm.ask()


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        (b"<html>", "server-no-json"),
        (b"[1]", "server-wrong-shape"),
        (b'{"data": [{"id": 7}]}', "server-wrong-shape"),
        (b'{"data": [{"id": "other", "root": "\\u0000"}]}', "server-other-weights"),
        (b'{"data": []}', "server-other-weights"),
    ],
)
def test_what_a_server_says_it_serves(vllm: Asked, said: bytes, rule: str) -> None:
    vllm.server.pages["/v1/models"] = Sent(plain(said))
    with pytest.raises(EngineError, match=rf"\[{rule}\]"):
        vllm.ask()


def test_a_server_that_is_not_well(vllm: Asked) -> None:
    vllm.server.pages["/health"] = Sent(plain(b"no", status="401 No"))
    with pytest.raises(EngineError, match=r"fails its health check: 401 no.*\[server-unhealthy\]"):
        vllm.ask()


# Counted, and fuzzed


class Turns(Server):
    """Sends the first of `turns` for a path, then the next; the last one stays."""

    def __init__(self, path: str, turns: list[Sent]) -> None:
        self.path, self.turns = path, turns
        super().__init__()

    def _read(self, connection: Any) -> str:
        path = super()._read(connection)
        if path == self.path and self.turns:
            self.pages[path] = self.turns.pop(0)
        return path


def test_faults_are_counted_by_rule_and_the_good_reply_after_them_is_taken(folder: Path, tmp_path: Path) -> None:
    case = asked(folder, "vllm")
    wrong = [plain(b"[]"), plain(b"<", status="503 Busy"), plain(json.dumps(choice(case, token_ids=[-1])).encode())]
    server = Turns(case.path, [*map(Sent, wrong), case.server.pages[case.path]])
    server.pages = dict(case.server.pages)
    settings = ServerSettings("vllm", None, f"http://127.0.0.1:{server.port}", str(tmp_path / "server.log"))
    engine = ServerEngine(folder, settings, patience=20.0)
    ((made,),) = engine.generate([Request(PROMPT, (7,))], SamplingParams(1.0, 8))
    assert made.tokens == tuple(IDS[:-1])
    counted = {"server-wrong-shape": 1, "server-overloaded": 1, "server-token-ids": 1}
    assert (engine.retried, engine.faults) == (3, counted)
    engine.close()
    assert json.loads((tmp_path / FAULTS).read_text()) == counted


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[list[hostile.Outcome]]:
    yield fuzz_servers.fuzz(120, seed=77)


@pytest.mark.slow
def test_no_broken_reply_gives_a_traceback_or_a_refusal_without_a_rule(fuzzed: list[hostile.Outcome]) -> None:
    kinds = {outcome.kind for outcome in fuzzed}
    assert not kinds.intersection(hostile.WRONG)
    assert len(kinds) > 5  # what is broken is broken by the changes


@pytest.mark.long
def test_thousands_of_broken_replies() -> None:
    fuzz_servers.fuzz(2000, seed=10_000)
