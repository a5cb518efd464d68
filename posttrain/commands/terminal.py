"""What a person sees while a run goes."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


class Terminal:
    """Prints what happens: a line that is rewritten on a terminal, a line a stage in a log file."""

    def __init__(self, show_round: Callable[[int], str]) -> None:
        self._show_round = show_round
        self._live = sys.stdout.isatty()
        self._started: dict[str, float] = {}
        self._running: dict[str, str] = {}  # what is shown of each stage that runs

    def runs_again(self, reason: str) -> None:
        self._print(reason)

    def started(self, number: int, stage: str) -> None:
        label = _label(number, stage)
        self._started[label] = time.monotonic()
        self._running[label] = ""
        self._show()

    def progress(self, number: int, stage: str, done: int, total: int, unit: str) -> None:
        label = _label(number, stage)
        rate = done / max(time.monotonic() - self._started[label], 1e-9)
        if done:
            self._running[label] = f" {done}/{total} {unit} {rate:,.0f}/s {(total - done) / rate:,.0f} s left"
        self._show()

    def finished(self, number: int, stage: str, seconds: float, metrics: Mapping[str, Any]) -> None:
        del self._running[_label(number, stage)]
        self._print(f"{_label(number, stage):<24}{seconds:6.1f} s  {summary(stage, metrics)}")

    def _print(self, text: str) -> None:
        print(("\r\x1b[K" if self._live else "") + text, flush=True)
        self._show()

    def _show(self) -> None:
        """On a terminal, what runs now, in one line that is rewritten."""
        if self._live:
            now = " | ".join(label + text for label, text in self._running.items())
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{now[:width]}", end="", flush=True)

    def round_done(self, number: int, ran: bool) -> None:
        if ran:
            self._print(self._show_round(number))


def _label(number: int, stage: str) -> str:
    return f"round {number}  {stage.replace('_', ' ')}"


def summary(stage: str, metrics: Mapping[str, Any]) -> str:
    """The few figures of a stage that a person wants to see as it ends."""
    if stage == "filters":
        dropped = ", ".join(f"{count} {reason}" for reason, count in metrics["dropped"].items())
        masked = sum(one.get("masked", 0) for one in metrics.get("filters", []))
        return f"kept {metrics['kept']}; dropped {dropped}" + (f"; masked {masked}" if masked else "")
    if stage in ("evaluate", "heldout"):
        return "  ".join(
            f"{name} greedy {figures['greedy']['value'] or 0:.3f} pass@1 {figures['pass@1']['value'] or 0:.3f}"
            for name, figures in metrics.items()
        )
    if stage == "watch":
        return "; ".join(metrics["warnings"]) or "no warning"
    names = (
        "prompts",
        "pairs",
        "completions",
        "mean_length",
        "rows",
        "unscored",
        "steps",
        "first_loss",
        "loss",
        "promoted",
    )
    parts = [f"{name} {metrics[name]:.4g}" for name in names if isinstance(metrics.get(name), int | float)]
    if stage in ("reward_model", "watch_model"):
        parts.append(f"held-out pair accuracy {metrics['pair_accuracy']['value'] or 0:.3f}")
    return "  ".join(parts)
