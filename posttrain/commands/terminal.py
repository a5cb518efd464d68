"""The terminal output of a command while it runs."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from posttrain.models import structure
from posttrain.storage.redact import printable


def say(text: object, *, error: bool = False, end: str = "\n") -> None:
    """Prints text that may come from others, escaped. All output goes through this or `Terminal`."""
    print(printable(str(text)), end=end, file=sys.stderr if error else sys.stdout, flush=True)


def json_text(value: object) -> str:
    """What `--json` prints."""
    return json.dumps(value, indent=1)


class Terminal:
    """Prints progress events: on a terminal in one line that is rewritten; in a log file a line when a stage starts,
    one every `every` seconds while it runs, and one when it ends."""

    def __init__(
        self,
        show_round: Callable[[int], str],
        clock: Callable[[], float] = time.monotonic,
        every: float = 30.0,
    ) -> None:
        self._show_round, self._clock, self._every = show_round, clock, every
        self._live = sys.stdout.isatty()
        self._begun: dict[str, tuple[float, int]] = {}  # time and count of each stage's first progress event
        self._told: dict[str, float] = {}  # when a line of each stage was printed last
        self._running: dict[str, str] = {}  # what is shown of each stage that runs
        self._slow: set[str] = set()  # why a slower way was taken, as it was said

    def runs_again(self, reason: str) -> None:
        self._print(reason)

    def started(self, number: int, stage: str) -> None:
        label = _label(number, stage)
        self._begun.pop(label, None)
        self._told[label] = self._clock()
        self._running[label] = ""
        if self._live:
            self._show()
        else:
            self._print(f"{label:<23} begins")

    def tries_again(self, number: int, stage: str, reason: str) -> None:
        self._running.pop(_label(number, stage), None)
        self._print(f"{_label(number, stage):<23} {reason}")

    def progress(self, number: int, stage: str, done: int, total: int, unit: str) -> None:
        label, now = _label(number, stage), self._clock()
        since, already = self._begun.setdefault(label, (now, done))
        self._running[label] = f"{done}/{total} {unit}{pace(done - already, now - since, total - done)}"
        if self._live:
            self._show()
        elif now - self._told[label] >= self._every and done < total:
            self._told[label] = now
            self._print(f"{label:<23} {self._running[label]}")

    def finished(self, number: int, stage: str, seconds: float, metrics: Mapping[str, Any]) -> None:
        del self._running[_label(number, stage)]
        self._print(f"{_label(number, stage):<23} {seconds:6.1f} s  {summary(stage, metrics)}")
        for reason in metrics.get("fallback", ()):  # the same in every round: said in the first
            if reason not in self._slow:
                self._slow.add(reason)
                self._print(f"warning: {stage.replace('_', ' ')}: {reason}")

    def _print(self, text: str) -> None:
        print("\r\x1b[K" if self._live else "", end="")
        say(text)
        self._show()

    def _show(self) -> None:
        """Rewrites the terminal's status line: the running stages."""
        if self._live:
            now = printable(" | ".join(f"{label}  {text}" for label, text in self._running.items()))
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{now[:width]}", end="", flush=True)

    def round_done(self, number: int, ran: bool) -> None:
        if ran:
            self._print(self._show_round(number))

    def note(self, text: str) -> None:
        """A message about something other than a stage."""
        self._print(text)


def pace(done: int, seconds: float, left: int) -> str:
    """Rate and remaining time in words; empty before they are known.

    `done` in `seconds`: since the stage's first progress event; work from before a resume is not counted.
    """
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    said = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
    return f", {said}, {duration(left / rate)} left"


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def _label(number: int, stage: str) -> str:
    return f"round {number}  {stage.replace('_', ' ')}"


def summary(stage: str, metrics: Mapping[str, Any]) -> str:
    """The main figures of a stage, printed when it ends."""
    if stage == "filters":
        dropped = ", ".join(f"{count} {reason}" for reason, count in metrics["dropped"].items())
        masked = sum(one.get("masked", 0) for one in metrics.get("filters", []))
        return f"kept {metrics['kept']}; dropped {dropped}" + (f"; masked {masked}" if masked else "")
    if stage in ("evaluate", "heldout"):
        return "  ".join(
            f"{name} greedy {figures['greedy']['value'] or 0:.3f} pass@1 {figures['pass@1']['value'] or 0:.3f}"
            for name, figures in metrics.items()
        )
    if stage.startswith("benchmark_") and "figures" in metrics:
        return "  ".join(
            f"{name} {figure['value']:.3f}"
            for of_task in metrics["figures"].values()
            for name, figure in of_task.items()
        )
    if stage == "quality_classifier":
        area = metrics["auc"]["value"]
        state = "on" if metrics["on"] else f"off: {metrics['why']}"
        return f"rows {metrics['rows']}  held-out AUC {'-' if area is None else f'{area:.3f}'}  {state}"
    if stage == "online" and "curve" in metrics:
        scores = metrics["curve"]["score"]
        first, last = (f"{one:.3f}" if one is not None else "-" for one in (scores[0], scores[-1]))
        kl = "" if metrics["kl"] is None else f"  KL {metrics['kl']:.3g}"
        counts = f"prompts {metrics['prompts']['used']}  completions {metrics['completions']}  steps {metrics['steps']}"
        return f"{counts}  score {first} to {last}{kl}"
    if stage in ("search", "correction"):
        kinds = metrics["prompts"]
        return (
            f"prompts {kinds['asked']}  solved {kinds['solved']}  pairs {metrics['pairs']}  tokens {metrics['tokens']}"
        )
    if stage == "step_labels":
        steps = metrics["steps"]
        return f"answers {metrics['answers']}  steps right {steps['right']}, wrong {steps['wrong']}"
    if stage in ("watch", "diversity"):
        return "; ".join(metrics["warnings"]) or "no warning"
    warnings = [f"warning: every answer got {value:g} of {name}" for name, value in metrics.get("constant", {}).items()]
    if metrics.get("unused_weights"):
        warnings.append(f"warning: {structure.unused(metrics['unused_weights'])}")
    if metrics.get("collapsed"):
        warnings.append(f"warning: the policy has collapsed, and is left out: {metrics['collapsed']}")
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
    if stage == "step_reward" and metrics.get("f1") is not None:
        parts.append(f"held-out F1 {metrics['f1']:.3f}")
    return "  ".join([*parts, *warnings])
