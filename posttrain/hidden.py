"""Tokens, keys and passwords of this machine, and texts without them: cards, errors, logs."""

from __future__ import annotations

import os
import re

LEFT_OUT = "(left out)"
# Tokens by their look, wherever they stand: of the Hub, of OpenAI and its like, and in an address.
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|(?<=://)[^/@\s]+@")
_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
_SHORTEST_SECRET = 8


def secrets_here() -> frozenset[str]:
    """Values that must never leave this machine: the Hub's token, and what variables of the environment call secret."""
    from huggingface_hub import get_token

    named = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    return frozenset(value for value in {*named, get_token() or ""} if len(value) >= _SHORTEST_SECRET)


def without_secrets(text: str, secrets: frozenset[str]) -> str:
    """The text with each of `secrets`, and what looks like one, replaced."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, LEFT_OUT)
    return _SECRET.sub(LEFT_OUT, text)


def shown(text: str) -> str:
    """The text as it may stand in a log or on a terminal."""
    return without_secrets(text, secrets_here())
