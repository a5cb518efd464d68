"""The engine behind an OpenAI-compatible server: one request a completion, each with its own seed.

Prompts go as token ids where the server takes them. Where it takes text alone, the policy's own tokenizer must make
the same ids of that text, or the prompt is refused: text of a user never becomes a control token unseen.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx

from posttrain.errors import EngineError, ModelError
from posttrain.records import Completion
from posttrain.sampling import keeper
from posttrain.sampling.answers import completions
from posttrain.sampling.dialects import DIALECTS, Ends, ServerSettings, command, find_command, loopback
from posttrain.sampling.loading import check_lengths, end_tokens
from posttrain.sampling.protocol import Request, SamplingParams

_ANSWER_SECONDS = 600.0  # without a byte of an answer for so long, it is asked for again
_START_SECONDS = 1800.0  # large weights are read for minutes
_RESTARTS = 3  # of a server of ours, in one stage
_STOPS = {"stop", "eos_token", "stop_sequence"}
_NAMES = ("root", "id", "model_path", "model_id")  # under which servers say what they serve


class ServerEngine:
    """Samples from the policy's folder through a server. Nothing is started or asked before the first `generate`.

    `patience`: how many seconds one completion is asked for again after connections that fail and answers of 429 or
    5xx. A server of ours that died is started again meanwhile.
    """

    name = "server"
    fallback: str | None = None

    def __init__(self, policy: str | Path, settings: ServerSettings, patience: float = 300.0) -> None:
        self.policy, self.settings, self.patience = str(policy), settings, patience
        self.dialect = DIALECTS[settings.kind]
        self.capabilities = self.dialect.capabilities
        self.retried = 0  # requests that were sent again
        self._model = self.policy  # as the server calls it
        self._own: OwnServer | None = None
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()
        self._revived = 0.0  # when a server of ours was last started again
        self._read_policy()

    def _read_policy(self) -> None:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        try:
            config: Any = AutoConfig.from_pretrained(self.policy)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.policy)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"cannot read the model folder {self.policy}: {error}", file=self.policy) from error
        try:
            generation = GenerationConfig.from_pretrained(self.policy)
        except OSError:
            generation = GenerationConfig.from_model_config(config)
        self.eos_ids = end_tokens(generation, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self._ends = Ends(tuple(sorted(self.eos_ids)), min(self.eos_ids) if pad is None else pad)
        self.context: int = getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        if not self.capabilities.token_ids:
            for an_id in self._ends.eos_ids:
                if self.tokenizer.decode([an_id], skip_special_tokens=True):
                    raise ModelError(
                        f"the end token {an_id} is ordinary text to the tokenizer: a server of kind "
                        f"{self.settings.kind} would leave it in every answer",
                        hint="make it a special token, or use another engine",
                    )

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """See `Engine.generate`.

        Raises:
            EngineError: the server cannot be had, serves other weights, refuses a request or stays away.
        """
        check_lengths(self.context, requests, params)
        prompts = [self._prompt(request) for request in requests]
        if not prompts:
            return []
        self._connect(prompts[0])
        drawn, greedy = (self._body(each) for each in (params, replace(params, temperature=0.0)))
        made: list[dict[int, Completion]] = [{} for _ in requests]
        pool, over = ThreadPoolExecutor(self.dialect.at_once), threading.Event()
        waiting = {
            pool.submit(
                self._sample,
                {**(greedy if seed is None else drawn), "prompt": prompts[number], "seed": seed or 0},
                len(request.prompt_ids),
                params,
                over,
            ): (number, index)
            for number, request in enumerate(requests)
            for index, seed in enumerate(request.seeds)
        }
        try:
            for done in as_completed(waiting):
                number, index = waiting[done]
                made[number][index] = done.result()  # its one place, however often it was asked for
        except BaseException:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return [[answers[index] for index in range(len(answers))] for answers in made]

    def close(self) -> None:
        """Ends the server, where it is ours."""
        if self._client is not None:
            self._client.close()
        if self._own is not None:
            self._own.stop()
        self._client = self._own = None

    def _body(self, params: SamplingParams) -> dict[str, Any]:
        return {**self.dialect.body(params, self._ends), "model": self._model, "max_tokens": params.max_new_tokens}

    def _prompt(self, request: Request) -> list[int] | str:
        ids = list(request.prompt_ids)
        if self.dialect.token_prompts:
            return ids
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        first = self.tokenizer.bos_token or ""
        for each in (text, text.removeprefix(first)):  # the server puts a begin token before what it reads
            if self.tokenizer(each)["input_ids"] == ids:
                return each
        raise EngineError(
            f"a prompt cannot be put to a server of kind {self.settings.kind}, which takes text alone: it would read "
            f"{text[:80]!r} as other tokens than the chat template wrote. Use an engine that takes token ids: "
            "shared-prefix, plain, or a server of kind vllm or sglang"
        )

    # The server

    def _connect(self, prompt: list[int] | str) -> None:
        if self._client is not None:
            return
        if self.settings.start is not None:
            self._own = OwnServer(self.settings.start, self.policy, Path(self.settings.log))
        url = self._own.url if self._own else str(self.settings.url).rstrip("/").removesuffix("/v1")
        self._client = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=10.0),
            limits=httpx.Limits(max_connections=self.dialect.at_once, max_keepalive_connections=self.dialect.at_once),
            trust_env=self._own is None,  # no proxy between us and our own machine
        )
        try:
            self._check_health()
            self._check_weights(prompt)
        except BaseException:
            self.close()
            raise

    def _check_health(self) -> None:
        assert self._client is not None
        if self._own is not None:
            self._own.wait_healthy(self._client)
            return
        try:
            reply = self._client.get("/health")
        except httpx.TransportError as error:
            raise EngineError(
                f"no server answers at {self.settings.url} ({error or type(error).__name__}): start it with the "
                f"weights in {self.policy}, or let the loop start it (`engine.server.start`)"
            ) from error
        if reply.status_code >= 400 and reply.status_code != 404:  # 404: it has no such page
            raise EngineError(f"the server at {self.settings.url} is not well: {_said(reply)}")

    def _check_weights(self, prompt: list[int] | str) -> None:
        """Whether this policy's weights are served.

        Raises:
            EngineError: it serves others; the message names both.
        """
        assert self._client is not None
        if self.dialect.served is None:
            if "@" in self.policy:
                raise EngineError(f"transformers serve takes what follows @ for a revision: {self.policy}")
            body = {"model": self.policy, "prompt": prompt, "max_tokens": 1}
            reply = self._client.post("/v1/completions", json=body)
            if reply.status_code >= 400:
                raise self._others(_said(reply))
            return
        reply = self._client.get(self.dialect.served)
        if reply.status_code >= 400:
            raise EngineError(f"the server does not say what it serves, {self.dialect.served}: {_said(reply)}")
        said = reply.json()
        entries: list[dict[str, Any]] = said.get("data", [said])
        for entry in entries:
            if any(_same(str(entry[name]), self.policy) for name in _NAMES if entry.get(name)):
                self._model = str(entry.get("id") or self.policy)
                return
        raise self._others(", ".join(str(entry[name]) for entry in entries for name in _NAMES if entry.get(name)))

    def _others(self, said: str) -> EngineError:
        return EngineError(
            f"the server at {self._client.base_url if self._client else self.settings.url} does not serve "
            f"{self.policy}, from which this stage samples, but: {said}. Serve that folder and give the same command "
            "again, or let the loop start a server with each round's weights (`engine.server.start`)"
        )

    # One completion

    def _sample(
        self, body: Mapping[str, Any], prompt_tokens: int, params: SamplingParams, over: threading.Event
    ) -> Completion:
        reply = self._post(body, over)
        choices = reply.get("choices") or []
        if len(choices) != 1:
            raise EngineError(f"the server gave {len(choices)} answers where one was asked for")
        read = (reply.get("usage") or {}).get("prompt_tokens", prompt_tokens)
        if read != prompt_tokens:
            raise EngineError(f"the server read {read} tokens where the prompt has {prompt_tokens}")
        choice: dict[str, Any] = choices[0]
        reason = choice.get("finish_reason")
        if reason != "length" and reason not in _STOPS:
            raise EngineError(f"the server ended an answer for a reason that is not known here: {reason!r}")
        if not self.capabilities.token_ids:
            return self._from_text(choice.get("text") or "", reason == "length", params)
        tokens: list[int] | None = choice.get("token_ids")
        if tokens is None:
            raise EngineError(f"the server gives no token ids: it is older than what {self.settings.kind} means here")
        ended = bool(tokens) and tokens[-1] in self.eos_ids
        logprobs: list[float] = (choice.get("logprobs") or {}).get("token_logprobs") or []
        kept = tokens[:-1] if ended else tokens
        (made,) = completions(self.tokenizer, [kept], [logprobs[: len(kept)]], [ended], params.stop)
        finish = "stop" if reason in _STOPS else made.finish
        return replace(made, finish=finish, logprobs=made.logprobs if self.capabilities.logprobs else None)

    def _from_text(self, text: str, cut_off: bool, params: SamplingParams) -> Completion:
        """`tokens` are the text's, which need not be those that were sampled."""
        cut = min((at for at in (text.find(part) for part in params.stop) if at >= 0), default=-1)
        text = text if cut < 0 else text[:cut]
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return Completion(text, tokens, "length" if cut_off and cut < 0 else "stop")

    def _post(self, body: Mapping[str, Any], over: threading.Event) -> dict[str, Any]:
        """The server's answer, asked for again while it is away. A first answer that was lost is never seen, so
        nothing is counted twice."""
        wait, since = 0.25, time.monotonic()
        while True:
            client, own = self._client, self._own
            if client is None or over.is_set():
                raise EngineError("sampling was stopped")
            try:
                reply = client.post("/v1/completions", json=body)
                if reply.status_code < 400:
                    return reply.json()
                problem = _said(reply)
                if reply.status_code < 500 and reply.status_code != 429:
                    raise EngineError(f"the server refuses a request: {problem}")
            except (httpx.TransportError, ValueError) as error:  # ValueError: half an answer
                problem = str(error) or type(error).__name__
            with self._lock:
                self.retried += 1
                if own is not None and own.revive(client):
                    self._revived = time.monotonic()
            if time.monotonic() - max(since, self._revived) > self.patience:
                raise EngineError(
                    f"the server at {client.base_url} gave no answer for {self.patience:.0f} s: {problem}. The same "
                    "command goes on from there"
                )
            over.wait(wait)
            wait = min(2 * wait, 10.0)


class OwnServer:
    """A server on a free port of this machine, started here. It ends with `stop`, and with this process however that
    ends.

    Raises:
        EngineError: its program is not there.
    """

    def __init__(self, start: Sequence[str], model: str, log: Path) -> None:
        program = find_command(start[0])
        if program is None:
            raise EngineError(f"the server's program {start[0]!r} is not installed (`engine.server.start`)")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self.url, self.log, self.restarts = f"http://127.0.0.1:{port}", log, 0
        self._words = [program, *command([*start[1:], *loopback(start)], model, port)]
        self._start()

    def _start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", keeper.__file__, *self._words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_healthy(self, client: httpx.Client) -> None:
        """Raises EngineError where it ends before it is ready, or is not in half an hour."""
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            code = self._process.poll()
            if code is not None:
                raise EngineError(f"the server ended with code {code} before it was ready: {self._last_lines()}")
            try:
                if client.get("/health", timeout=5.0).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise EngineError(f"the server was not ready after {_START_SECONDS:.0f} s: {self._last_lines()}")

    def revive(self, client: httpx.Client) -> bool:
        """Start it again where it died; whether that was needed."""
        if self._process.poll() is None:
            return False
        if self.restarts == _RESTARTS:
            raise EngineError(f"the server died {_RESTARTS + 1} times: {self._last_lines()}")
        self.restarts += 1
        self._start()
        self.wait_healthy(client)
        return True

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _last_lines(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 2000))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n  ".join([f"log: {self.log}", *lines[-8:]])


def _same(name: str, policy: str) -> bool:
    return name == policy or os.path.realpath(name) == os.path.realpath(policy)


def _said(reply: httpx.Response) -> str:
    return f"{reply.status_code} {reply.text[:300]}"
