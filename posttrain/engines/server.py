"""The engine for OpenAI-compatible servers: one request per completion, each with its own seed.

Prompts are sent as token ids if the server accepts them. If it accepts only text, the policy's tokenizer must give the
same ids for that text, or the prompt is refused: a user's text never becomes a control token.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.engines.detokenize import completions
from posttrain.engines.load import check_lengths, end_tokens
from posttrain.engines.openai_client import BYTES_A_TOKEN, BYTES_BESIDE, Fault, OpenAIClient, Reply, Waiting
from posttrain.engines.own_server import OwnServer
from posttrain.engines.protocol import Completion, Request, SamplingParams, context_length
from posttrain.engines.replies import About, Choice, Completions, only, parsed
from posttrain.engines.server_dialects import DIALECTS, Ends, ServerSettings
from posttrain.errors import EngineError, ModelError, PosttrainError

FAULTS = "server-faults.json"  # beside the server's log: replies that were not taken, by rule
_ABOUT_SECONDS = 60.0  # for what a server says of itself
_STOPS = {"stop", "eos_token", "stop_sequence"}
_BYTES_AN_ID = 16  # of a prompt that is sent back
_ABOVE_ZERO = 0.01  # what rounding may add to a log-prob
# Tokens that a sampled one may become when its text is encoded again: half a character becomes U+FFFD, three bytes.
_AGAIN = 3


def check_server(url: str) -> None:
    """Checks the health of a server at a `url`.

    Raises:
        InputError: the address is invalid.
        EngineError: no server answers there, or it is not healthy.
    """
    waiting = Waiting(reply=5.0, connect=5.0, patience=0.0)
    root = url.rstrip("/").removesuffix("/v1")
    client = OpenAIClient(root, waiting, 1, called=f"the server at {root}", kept="")
    try:
        _check_health(client, url, waiting.reply, "start it, or let the loop start it (`engine.server.start`)")
    finally:
        client.close()


def _check_health(client: OpenAIClient, url: str, seconds: float, hint: str) -> None:
    try:
        reply = client.run(client.send("GET", "/health", BYTES_BESIDE, seconds))
    except Fault as fault:
        raise EngineError(f"no server answers at {url} ({fault.problem}): {hint}", rule=fault.rule) from fault
    if reply.status >= 400 and reply.status != 404:  # 404: it has no such page
        raise EngineError(f"the server at {url} fails its health check: {reply.said}", rule="server-unhealthy")


class ServerEngine:
    """Samples from the policy's folder through a server. Nothing is started or requested before the first `generate`.

    `patience`: seconds to retry one completion after failed connections and status 429 or 5xx; `answer_seconds`: time
    limit of one answer. A server of ours that died is restarted meanwhile.
    """

    name = "server"
    fallback: str | None = None

    def __init__(
        self, policy: str | Path, settings: ServerSettings, patience: float = 300.0, answer_seconds: float = 600.0
    ) -> None:
        self.policy, self.settings = str(policy), settings
        self.waiting = Waiting(reply=answer_seconds, connect=min(10.0, answer_seconds), patience=patience)
        self.dialect = DIALECTS[settings.kind]
        self.capabilities = self.dialect.capabilities
        self._model = self.policy  # as the server calls it
        self._own: OwnServer | None = None
        self._client: OpenAIClient | None = None
        self._tokenizing = threading.Lock()
        self._connecting, self._closed = threading.Lock(), False
        self._failed: PosttrainError | None = None  # why it could not be had: said to every thread
        self._reviving = asyncio.Lock()
        self._read_policy()

    def _read_policy(self) -> None:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        try:
            config: Any = AutoConfig.from_pretrained(self.policy)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.policy)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"cannot read the model folder {self.policy}: {error}", file=self.policy, rule="server-policy"
            ) from error
        try:
            generation = GenerationConfig.from_pretrained(self.policy)
        except OSError:
            generation = GenerationConfig.from_model_config(config)
        self.eos_ids = end_tokens(generation, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self._ends = Ends(tuple(sorted(self.eos_ids)), min(self.eos_ids) if pad is None else pad)
        self.context = context_length(config)
        self._vocabulary = max(len(self.tokenizer), getattr(config.get_text_config(), "vocab_size", None) or 0)
        if not self.capabilities.token_ids:
            for an_id in self._ends.eos_ids:
                if self.tokenizer.decode([an_id], skip_special_tokens=True):
                    raise ModelError(
                        f"the end token {an_id} is ordinary text to the tokenizer: a server of kind "
                        f"{self.settings.kind} would leave it in every answer",
                        hint="make it a special token, or use another engine",
                        rule="server-end-token",
                    )

    @property
    def retried(self) -> int:
        """Requests that were sent again."""
        return self._client.resent if self._client else 0

    @property
    def faults(self) -> Counter[str]:
        """Rejected replies, by rule."""
        return Counter(self._client.faults) if self._client else Counter()

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """See `Engine.generate`.

        Raises:
            EngineError: the server cannot be reached, serves other weights, refuses a request, or gives invalid
                replies.
        """
        check_lengths(self.context, requests, params)
        prompts = [self._prompt(request) for request in requests]
        if not prompts:
            return []
        client = self._connect(prompts[0])
        drawn, greedy = (self._body(each) for each in (params, replace(params, temperature=0.0)))
        made: list[dict[int, Completion]] = [{} for _ in requests]
        work = (
            (
                (number, index),
                client.post(
                    "/v1/completions",
                    {**(greedy if seed is None else drawn), "prompt": prompts[number], "seed": seed or 0},
                    _longest(len(request.prompt_ids), params),
                    functools.partial(self._read, len(request.prompt_ids), params),
                ),
            )
            for number, request in enumerate(requests)
            for index, seed in enumerate(request.seeds)
        )
        for (number, index), (completion, _) in client.as_done(work):
            made[number][index] = completion  # its one place, however often it was asked for
        return [[answers[index] for index in range(len(answers))] for answers in made]

    def close(self) -> None:
        """Ends the server, where it is ours. Nothing can be sampled through it any more."""
        self._closed = True
        if self._client is not None:
            self._write_faults()
            self._client.close()
        if self._own is not None:
            self._own.stop()
        self._client = self._own = None

    def _write_faults(self) -> None:
        if not self.faults or not self.settings.log:
            return
        file = Path(self.settings.log).with_name(FAULTS)
        file.write_text(json.dumps(self.faults + Counter(faults_in(file.parent))), encoding="utf-8")

    def _body(self, params: SamplingParams) -> dict[str, Any]:
        return {**self.dialect.body(params, self._ends), "model": self._model, "max_tokens": params.max_new_tokens}

    def _prompt(self, request: Request) -> list[int] | str:
        ids = list(request.prompt_ids)
        if self.dialect.token_prompts:
            return ids
        with self._tokenizing:  # a fast tokenizer is not made for several threads
            text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            first = self.tokenizer.bos_token or ""
            for each in (text, text.removeprefix(first)):  # the server puts a begin token before what it reads
                if self.tokenizer(each)["input_ids"] == ids:
                    return each
        raise EngineError(
            f"a prompt cannot be put to a server of kind {self.settings.kind}, which takes text alone: it would read "
            f"{text[:80]!r} as other tokens than the chat template wrote. Use an engine that takes token ids: "
            "shared-prefix, plain, or a server of kind vllm or sglang",
            rule="server-prompt-as-text",
        )

    # The server

    def _connect(self, prompt: list[int] | str) -> OpenAIClient:
        with self._connecting:  # shards are sampled in several threads
            if self._failed is not None:
                raise self._failed
            if self._closed:
                raise CancelledError
            try:
                return self._client or self._connected(prompt)
            except PosttrainError as error:
                self._failed = error
                raise

    def _connected(self, prompt: list[int] | str) -> OpenAIClient:
        if self.settings.start is not None:
            self._own = OwnServer(self.settings.start, self.policy, Path(self.settings.log), self.settings.gpus)
        url = self._own.url if self._own else str(self.settings.url).rstrip("/").removesuffix("/v1")
        self._client = OpenAIClient(
            url,
            self.waiting,
            self.dialect.at_once,
            called=f"the server at {url}",
            kept="The same command goes on from there",
            trust_env=self._own is None,  # no proxy between us and our own machine
        )
        self._client.on_failure = self._revive
        try:
            if self._own is not None:
                self._client.run(self._own.wait_healthy(self._client))
            else:
                hint = f"start it with the weights in {self.policy}, or let the loop start it (`engine.server.start`)"
                _check_health(self._client, str(self.settings.url), min(_ABOUT_SECONDS, self.waiting.reply), hint)
            self._check_weights(self._client, prompt)
        except BaseException:
            self.close()
            raise
        return self._client

    async def _revive(self) -> None:
        async with self._reviving:
            if self._own is not None and self._client is not None and await self._own.revive(self._client):
                self._client.restart_retry_time()

    def _check_weights(self, client: OpenAIClient, prompt: list[int] | str) -> None:
        """Checks that the server serves this policy's weights.

        Raises:
            EngineError: it serves others; the message names both.
        """
        if self.dialect.served is None:
            if "@" in self.policy:
                raise EngineError(
                    f"transformers serve takes what follows @ for a revision: {self.policy}", rule="server-model-name"
                )
            body = {"model": self.policy, "prompt": prompt, "max_tokens": 1}
            reply = self._ask_about(client, "/v1/completions", self.waiting.reply, body)
            if reply.status >= 400:
                raise self._others(reply.said)
            return
        reply = self._ask_about(client, self.dialect.served, min(_ABOUT_SECONDS, self.waiting.reply))
        if reply.status >= 400:
            raise EngineError(
                f"the server at {client.url} does not say what it serves, {self.dialect.served}: {reply.said}",
                rule="server-refuses",
            )
        try:
            said = parsed(About, reply.body)
        except Fault as fault:
            raise _at_once(client, self.dialect.served, fault) from fault
        entries = [said] if said.data is None else said.data
        for entry in entries:
            if any(_same(name, self.policy) for name in entry.names):
                self._model = entry.id or self.policy
                return
        raise self._others(", ".join(name for entry in entries for name in entry.names)[:300])

    def _ask_about(
        self, client: OpenAIClient, path: str, seconds: float, body: Mapping[str, Any] | None = None
    ) -> Reply:
        longest = _longest(len(body["prompt"]), SamplingParams(1.0, 1)) if body else 16 * BYTES_BESIDE
        try:
            return client.run(client.send("POST" if body else "GET", path, longest, seconds, body))
        except Fault as fault:
            raise _at_once(client, path, fault) from fault

    def _others(self, said: str) -> EngineError:
        return EngineError(
            f"the server at {self._client.url if self._client else self.settings.url} does not serve "
            f"{self.policy}, from which this stage samples, but: {said}. Serve that folder and give the same command "
            "again, or let the loop start a server with each round's weights (`engine.server.start`)",
            rule="server-other-weights",
        )

    # One completion

    def _read(self, prompt_tokens: int, params: SamplingParams, body: bytes) -> Completion:
        """The completion in a reply. Raises Fault if it is not exactly one answer to the request."""
        reply = parsed(Completions, body)
        choice, usage = only(reply.choices), reply.usage
        if usage is not None and usage.prompt_tokens not in (None, prompt_tokens):
            raise Fault(
                f"the server read {_count(usage.prompt_tokens)} tokens where the prompt has {prompt_tokens}",
                rule="server-other-prompt",
            )
        if usage is not None and (usage.completion_tokens or 0) > params.max_new_tokens:
            raise _too_many(usage.completion_tokens, params)
        if choice.finish_reason != "length" and choice.finish_reason not in _STOPS:
            said = repr(choice.finish_reason)[:60]
            raise Fault(
                f"the server ended an answer for a reason that is not known here: {said}", rule="server-finish-reason"
            )
        return self._from_ids(choice, params) if self.capabilities.token_ids else self._from_text(choice, params)

    def _from_ids(self, choice: Choice, params: SamplingParams) -> Completion:
        tokens = choice.token_ids
        if tokens is None:
            raise Fault(
                f"the server gives no token ids: it is older than what {self.settings.kind} means here",
                rule="server-no-token-ids",
            )
        if len(tokens) > params.max_new_tokens:
            raise _too_many(len(tokens), params)
        for at, an_id in enumerate(tokens):
            if not 0 <= an_id < self._vocabulary:
                raise Fault(
                    f"token {at} of an answer is none of the {self._vocabulary} of the model", rule="server-token-ids"
                )
        logprobs: list[float] = []
        if self.capabilities.logprobs:
            logprobs = (choice.logprobs.token_logprobs if choice.logprobs else None) or []
            if len(logprobs) != len(tokens) or any(each > _ABOVE_ZERO for each in logprobs):
                raise Fault(
                    f"the server gave {len(logprobs)} log-probs for {len(tokens)} tokens, or some above 0",
                    rule="server-logprobs",
                )
        ended = bool(tokens) and tokens[-1] in self.eos_ids
        kept = tokens[:-1] if ended else tokens
        (made,) = completions(self.tokenizer, [kept], [logprobs[: len(kept)]], [ended], params.stop)
        finish = "stop" if choice.finish_reason in _STOPS else made.finish
        return replace(made, finish=finish, logprobs=made.logprobs if self.capabilities.logprobs else None)

    def _from_text(self, choice: Choice, params: SamplingParams) -> Completion:
        """A completion of text alone: `tokens` are the text's, which may differ from the sampled ones."""
        text = choice.text or ""
        cut = min((at for at in (text.find(part) for part in params.stop) if at >= 0), default=-1)
        text = text if cut < 0 else text[:cut]
        tokens = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        if len(tokens) > _AGAIN * params.max_new_tokens:
            raise _too_many(len(tokens), params)
        return Completion(text, tokens, "length" if choice.finish_reason == "length" and cut < 0 else "stop")


def faults_in(folder: Path) -> dict[str, int]:
    """The rejected replies of a stage's server, by rule; `folder`: of its log."""
    file = folder / FAULTS
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def _longest(prompt_tokens: int, params: SamplingParams) -> int:
    """Most bytes of a reply with one answer."""
    return BYTES_BESIDE + BYTES_A_TOKEN * params.max_new_tokens + _BYTES_AN_ID * prompt_tokens


def _at_once(client: OpenAIClient, path: str, fault: Fault) -> EngineError:
    return EngineError(f"the server at {client.url} does not say what it serves, {path}: {fault}", rule=fault.rule)


def _too_many(tokens: int | None, params: SamplingParams) -> Fault:
    return Fault(
        f"the server gave an answer of {_count(tokens)} tokens where {params.max_new_tokens} were allowed",
        rule="server-too-many-tokens",
    )


def _count(number: int | None) -> str:
    return str(number) if number is not None and abs(number) < 1e15 else "absurdly many"


def _same(name: str, policy: str) -> bool:
    return name == policy or ("\0" not in name and os.path.realpath(name) == os.path.realpath(policy))
