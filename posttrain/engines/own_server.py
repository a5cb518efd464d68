"""A server that a stage starts for its policy, monitors, restarts if it died, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from posttrain.engines import supervisor
from posttrain.engines.openai_client import BYTES_BESIDE, Fault, OpenAIClient
from posttrain.engines.server_dialects import command, find_command, loopback
from posttrain.errors import EngineError

_START_SECONDS = 1800.0  # large weights are read for minutes
_RESTARTS = 3  # of one server, in one stage


class OwnServer:
    """A server on a free port of this machine, started here. It ends with `stop`, and with this process.

    Raises:
        EngineError: its program does not exist.
    """

    def __init__(self, start: Sequence[str], model: str, log: Path, gpus: str | None = None) -> None:
        """`gpus`: those that it sees, None: all."""
        program = find_command(start[0])
        if program is None:
            raise EngineError(
                f"the server's program {start[0]!r} is not installed (`engine.server.start`)",
                rule="server-program",
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        self._environment = {**os.environ, **({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})}
        self.url, self.log, self.restarts = f"http://127.0.0.1:{port}", log, 0
        self._words = [program, *command([*start[1:], *loopback(start)], model, port)]
        self._start()

    def _start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", supervisor.__file__, *self._words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )

    async def wait_healthy(self, client: OpenAIClient) -> None:
        """Waits until the server is healthy. Raises EngineError if it ends first, or after half an hour."""
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            code = self._process.poll()
            if code is not None:
                raise EngineError(
                    f"the server ended with code {code} before it was ready: {self._last_lines()}", rule="server-ended"
                )
            with contextlib.suppress(Fault):
                if (await client.send("GET", "/health", BYTES_BESIDE, 5.0)).status == 200:
                    return
            await asyncio.sleep(0.2)
        raise EngineError(
            f"the server was not ready after {_START_SECONDS:.0f} s: {self._last_lines()}", rule="server-not-ready"
        )

    async def revive(self, client: OpenAIClient) -> bool:
        """Restarts the server if it died; returns whether it did."""
        if self._process.poll() is None:
            return False
        if self.restarts == _RESTARTS:
            raise EngineError(f"the server died {_RESTARTS + 1} times: {self._last_lines()}", rule="server-died")
        self.restarts += 1
        self._start()
        await self.wait_healthy(client)
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
