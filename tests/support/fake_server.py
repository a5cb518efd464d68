"""A small HTTP server that speaks as vLLM, SGLang, TGI or transformers serve do, with the plain engine behind it.

Written by hand after their documentation: what it proves is our side of the talk. Run as a program it serves a folder:
`python fake_server.py KIND FOLDER PORT [FILE]`, dying once after three answers if FILE is not there yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from posttrain.engines import Request, SamplingParams, ServerSettings
from posttrain.engines.load import load
from posttrain.engines.plain import PlainEngine


class FakeServer:
    """`serves`: the folder it says it has; `called`: the name it gives it. `fail_next`: what the next requests get."""

    def __init__(
        self, folder: Path, kind: str, serves: str | None = None, called: str | None = None, port: int = 0
    ) -> None:
        self.kind, self.serves = kind, serves or str(folder)
        self.called = called or self.serves
        self.loaded = load(folder, "float32", "cpu")
        self.engine = PlainEngine(self.loaded)
        self.bodies: list[dict[str, Any]] = []
        self.answered, self.extra_tokens = 0, 0
        self.fail_next: list[int | str] = []
        self._dies_at: int | None = None
        self._back_after: float | None = None
        self._lock = threading.Lock()
        self._timers: list[threading.Timer] = []
        self.port = port
        self._listen()

    def settings(self) -> ServerSettings:
        return ServerSettings(self.kind, None, f"http://127.0.0.1:{self.port}", "")

    def die_after(self, answers: int, back_after: float | None) -> None:
        """Let go of the port and of every connection after so many answers; listen again later, or never."""
        self._dies_at, self._back_after = answers, back_after

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._close()

    def _listen(self) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._send(200, fake.about(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code, answer = fake.answer(body)
                if code == 0:
                    self.close_connection = True
                    return
                self._send(code, answer)

            def _send(self, code: int, answer: dict[str, Any]) -> None:
                text = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a connection that broke is what some tests are about

        self._server: Listener | None = Listener(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def about(self, path: str) -> dict[str, Any]:
        return {
            "/v1/models": {"data": [{"id": self.called, "root": self.serves}]},
            "/get_model_info": {"model_path": self.serves},
            "/info": {"model_id": self.serves},
        }.get(path, {})

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON; status 0: the connection is cut without a word."""
        if self.kind == "transformers" and body["model"] != self.serves:
            return 400, {"detail": f"Server is pinned to '{self.serves}'; requested '{body['model']}'."}
        with self._lock:
            if self._dies_at is not None and self.answered >= self._dies_at:
                if self._server is not None:
                    self._close()
                    if self._back_after is not None:
                        self._dies_at = None
                        self._timers.append(threading.Timer(self._back_after, self._listen))
                        self._timers[-1].start()
                return 0, {}
            if self._server is None:
                return 0, {}
            failing = self.fail_next.pop(0) if self.fail_next else None
            if isinstance(failing, int):
                return failing, {"error": "as told"}
            self.bodies.append(body)
            self.answered += 1
            answer = self._complete(body)
        return (0, {}) if failing == "cut" else (200, answer)

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        tokenizer, prompt = self.loaded.tokenizer, body["prompt"]
        ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        assert isinstance(prompt, str) == (self.kind == "tgi")
        params = SamplingParams(
            body["temperature"], body["max_tokens"], body.get("top_p", 1.0), tuple(body.get("stop", ()))
        )
        ((made,),) = self.engine.generate([Request(tuple(ids), (body["seed"],))], params)
        by_end = (
            made.finish == "stop" and len(made.tokens) < body["max_tokens"] and not _stopped(tokenizer, made, params)
        )
        tokens = [*made.tokens, *([tokenizer.eos_token_id] if by_end else [])]
        choice: dict[str, Any] = {"index": 0, "finish_reason": made.finish}
        if self.kind == "tgi":  # it leaves the stop string in the text
            whole = tokenizer.decode(list(made.tokens), skip_special_tokens=True)
            choice |= {"text": whole, "finish_reason": "eos_token" if by_end else made.finish}
        else:
            logprobs = [*(made.logprobs or ()), *([-0.1] if by_end else [])]
            choice |= {"text": made.text, "token_ids": tokens, "logprobs": {"token_logprobs": logprobs}}
        usage = {"prompt_tokens": len(ids) + self.extra_tokens, "completion_tokens": len(tokens)}
        return {"choices": [choice], "usage": usage}


def _stopped(tokenizer: Any, made: Any, params: SamplingParams) -> bool:
    whole = tokenizer.decode(list(made.tokens), skip_special_tokens=True)
    return any(part in whole for part in params.stop)


def _main(kind: str, folder: str, port: str, once: str = "") -> None:
    server = FakeServer(Path(folder), kind, port=int(port))
    print("serving", folder, os.getpid(), flush=True)  # noqa: T201 # run as a program, its log tells tests which process it is
    while True:
        time.sleep(0.02)
        if once and not Path(once).exists() and server.answered >= 3:
            with contextlib.suppress(FileExistsError):
                Path(once).touch(exist_ok=False)
                os._exit(9)


if __name__ == "__main__":
    _main(*sys.argv[1:])
