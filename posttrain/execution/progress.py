"""Progress events and their receivers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Watcher(Protocol):
    """Receives progress events. Implementations decide how to display them."""

    def runs_again(self, reason: str) -> None: ...
    def started(self, number: int, stage: str) -> None: ...
    def tries_again(self, number: int, stage: str, reason: str) -> None: ...
    def progress(self, number: int, stage: str, done: int, total: int, unit: str) -> None: ...
    def finished(self, number: int, stage: str, seconds: float, metrics: Mapping[str, Any]) -> None: ...
    def round_done(self, number: int, ran: bool) -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    """Ignores all events."""

    def runs_again(self, reason: str) -> None: ...
    def started(self, number: int, stage: str) -> None: ...
    def tries_again(self, number: int, stage: str, reason: str) -> None: ...
    def progress(self, number: int, stage: str, done: int, total: int, unit: str) -> None: ...
    def finished(self, number: int, stage: str, seconds: float, metrics: Mapping[str, Any]) -> None: ...
    def round_done(self, number: int, ran: bool) -> None: ...
    def note(self, text: str) -> None: ...


class Watchers:
    """Passes every event to several watchers, in order."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def runs_again(self, reason: str) -> None:
        for each in self._watchers:
            each.runs_again(reason)

    def started(self, number: int, stage: str) -> None:
        for each in self._watchers:
            each.started(number, stage)

    def tries_again(self, number: int, stage: str, reason: str) -> None:
        for each in self._watchers:
            each.tries_again(number, stage, reason)

    def progress(self, number: int, stage: str, done: int, total: int, unit: str) -> None:
        for each in self._watchers:
            each.progress(number, stage, done, total, unit)

    def finished(self, number: int, stage: str, seconds: float, metrics: Mapping[str, Any]) -> None:
        for each in self._watchers:
            each.finished(number, stage, seconds, metrics)

    def round_done(self, number: int, ran: bool) -> None:
        for each in self._watchers:
            each.round_done(number, ran)

    def note(self, text: str) -> None:
        for each in self._watchers:
            each.note(text)
