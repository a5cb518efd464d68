"""Calls to the Hub, with retries, and errors with a hint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers

from posttrain.errors import HubError
from posttrain.storage.redact import without_secrets

T = TypeVar("T")
_TOKENS = "https://huggingface.co/settings/tokens"
# 409 and 412: somebody else committed meanwhile. What is committed is looked up anew before each try.
_PASSING = (408, 409, 412, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class RetryPolicy:
    """The number of tries, and the waits between them in seconds, each twice the one before."""

    tries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 600.0  # a Hub that asks for more is not waited for
    sleep: Callable[[float], None] = time.sleep


class HubClient:
    """The Hub's API with a token, which is never printed, and retries."""

    def __init__(
        self,
        token: str | None,
        *,
        endpoint: str | None = None,
        retries: RetryPolicy | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not token:
            raise HubError(
                f"there is no token to push with\n  hf auth login, or set HF_TOKEN; one that may write: {_TOKENS}"
            )
        self.api = HfApi(endpoint=endpoint, token=token, library_name="posttrain")
        self._retries, self._say, self._secrets = retries or RetryPolicy(), say, frozenset([token])
        self._reached = False  # whether the Hub has ever answered: before that, waiting does not help
        self.user = ""

    def call(self, what: str, do: Callable[[], T]) -> T:
        """Calls `do()`, with retries after transient errors. `what` completes "could not …".

        Raises:
            HubError: the Hub refuses, cannot be reached, or asks for too long a wait.
        """
        wait = self._retries.first_wait
        for left in reversed(range(self._retries.tries)):
            try:
                result = do()
            except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
                cause = _cause(error)
                pause = self._pause(cause, wait)
                if not left or pause is None or pause > self._retries.longest_wait:
                    raise self._explained(what, cause) from None  # a cause can show headers
                self._say(f"could not {what}: {_short(cause)}; again in {pause:.0f} s")
                self._retries.sleep(pause)
                wait *= 2
            else:
                self._reached = True
                return result
        raise AssertionError("no try at all")

    def _pause(self, error: BaseException, wait: float) -> float | None:
        """Seconds to wait before the next try; None: a retry cannot help."""
        if isinstance(error, HfHubHTTPError):
            self._reached = True
            if error.response.status_code not in _PASSING:
                return None
            return max(wait, _retry_after(error.response))
        return wait if isinstance(error, httpx2.TransportError) and self._reached else None

    def _explained(self, what: str, error: BaseException) -> HubError:
        said, hint = _reason(error, self.user, self.api.endpoint)
        return HubError(without_secrets(f"could not {what}: {said}\n  {hint}", self._secrets))


def _cause(error: BaseException) -> BaseException:
    """The underlying exception: the client wraps errors of large files."""
    while not isinstance(error, httpx2.HTTPError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _retry_after(response: Any) -> float:
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    given = response.headers.get("Retry-After", "")
    return float(given) if given.isdigit() else 0.0


def _short(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answers {error.response.status_code}"
    return f"the connection failed ({type(error).__name__})"


def _reason(error: BaseException, user: str, endpoint: str) -> tuple[str, str]:
    """The reason of an error, and a hint."""
    again = "nothing of the run was changed; the same command goes on, and what is there is not sent again"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it, or look at what would go with --dry-run"
    if isinstance(error, httpx2.TransportError):
        return f"no connection to {endpoint} ({type(error).__name__})", f"check the network; {again}"
    if not isinstance(error, HfHubHTTPError):
        return " ".join(str(error).split()), again
    status = error.response.status_code
    message = f" ({' '.join(error.server_message.split())})" if error.server_message else ""
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return f"the Hub does not accept the token{message}", f"hf auth login, or another HF_TOKEN: {_TOKENS}"
    if status == 403:
        whose = f"{user or 'this token'} may not do that{message}"
        return (
            whose,
            f"push to a repository of your own ({user or 'user'}/NAME), or use a token that may write: {_TOKENS}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is not yours to see", "check the name, and that the token may see it"
    if status == 429:
        return f"the Hub asks for fewer requests{message}", f"wait some minutes; {again}"
    return f"the Hub answers {status}{message}", again
