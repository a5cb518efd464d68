"""Redacts text for logs and terminals: no tokens, keys or passwords of this machine, no control characters."""

from __future__ import annotations

import io
import logging
import os
import re
import traceback
import warnings
from typing import Any

LEFT_OUT = "(left out)"
# Tokens by their look, wherever they stand: of the Hub, of OpenAI and its like, and in an address.
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|(?<=://)[^/@\s]+@")
_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
_SHORTEST_SECRET = 8
# What a terminal acts on: controls (ANSI begins with U+001B, or with one of C1), line ends that are none to others, and
# what turns the direction of text. Half a character cannot be printed at all. Newlines and tabs are text.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def secrets_here() -> frozenset[str]:
    """Secret values: the Hub's token, and environment variables whose names say that they are secret."""
    from huggingface_hub import get_token

    named = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    return frozenset(value for value in {*named, get_token() or ""} if len(value) >= _SHORTEST_SECRET)


def without_secrets(text: str, secrets: frozenset[str]) -> str:
    """The text with each of `secrets`, and anything that looks like a token, replaced."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, LEFT_OUT)
    return _SECRET.sub(LEFT_OUT, text)


def printable(text: str) -> str:
    """The text with all that a terminal would act on written out, as in \\u001b (which JSON reads back)."""
    return _COMMANDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class Log(io.TextIOWrapper):
    """A text file that escapes what is not printable; a progress bar gets a new line each time."""

    def write(self, text: str) -> int:
        super().write(printable(text.replace("\r\n", "\n").replace("\r", "\n")))
        return len(text)


class _Record(logging.LogRecord):
    """A log record that is escaped whatever handler and formatter a library uses."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        if isinstance(self.exc_info, tuple) and self.exc_info[0]:
            self.exc_text = printable("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        return printable(super().getMessage())


def escape_libraries() -> None:
    """Escapes what libraries log or warn in this process from now on."""
    logging.setLogRecordFactory(_Record)
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *args, **more: printable(plain(*args, **more))


def redact(text: str) -> str:
    """The text redacted and escaped, for a log or a terminal."""
    return printable(without_secrets(text, secrets_here()))
