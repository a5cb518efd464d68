"""What a person sees while a run goes: on a terminal, and in a log file."""

import ast
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest

from posttrain import cli
from posttrain.commands.terminal import Terminal, duration, pace, say
from posttrain.errors import EngineError, PosttrainError, RewardError
from posttrain.storage.redact import Log, printable

ROOT = Path(__file__).parents[2]
HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\r\u202eevil\u2066\u2028\ud800\x00\x08\x7f"
COMMANDS = set(HOSTILE) - set("[2J]0;title31mevil")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_file_gets_whole_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    terminal = Terminal(lambda number: f"the table of round {number}", clock=clock, every=30.0)
    terminal.started(1, "reward_model")
    for step in range(1, 101):  # a step a second, from the 20th on: the first were done before a stop
        terminal.progress(1, "reward_model", min(19 + step, 100), 100, "steps")
        clock.now += 1.0
    terminal.finished(1, "reward_model", 100.0, {"steps": 100, "loss": 0.5, "pair_accuracy": {"value": 0.75}})
    terminal.round_done(1, ran=True)
    assert capsys.readouterr().out.splitlines() == [
        "round 1  reward model   begins",
        "round 1  reward model   50/100 steps, 1.0/s, 50 s left",
        "round 1  reward model   80/100 steps, 1.0/s, 20 s left",
        "round 1  reward model    100.0 s  steps 100  loss 0.5  held-out pair accuracy 0.750",
        "the table of round 1",
    ]


def test_on_a_terminal_one_line_is_rewritten(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    clock = Clock()
    terminal = Terminal(str, clock=clock)
    terminal.started(1, "sft")
    terminal.started(1, "samples")
    terminal.progress(1, "sft", 0, 40, "steps")
    clock.now = 2.0
    terminal.progress(1, "sft", 8, 40, "steps")
    out = capsys.readouterr().out
    assert "\n" not in out
    assert out.rpartition("\r\x1b[K")[2].startswith("round 1  sft  8/40 steps, 4.0/s, 8 s left | round 1  samples")
    terminal.finished(1, "sft", 3.0, {"steps": 40})
    assert "\r\x1b[Kround 1  sft               3.0 s  steps 40\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("done", "seconds", "left", "said"),
    [
        (0, 9.0, 5, ""),
        (50, 0.0, 5, ""),
        (2000, 1.0, 10_000, ", 2,000/s, 5 s left"),
        (3, 60.0, 30, ", 20.0 s each, 10 min left"),
    ],
)
def test_the_pace(done: int, seconds: float, left: int, said: str) -> None:
    assert pace(done, seconds, left) == said


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.2, 99, 100, 5940, 7500)] == [
        "0 s",
        "99 s",
        "2 min",
        "99 min",
        "2 h 05 min",
    ]


# What others wrote


def clean(shown: str) -> str:
    assert not COMMANDS.intersection(shown), repr(shown)
    return shown


def test_what_a_terminal_acts_on_is_written_out_and_the_rest_stays() -> None:
    assert printable("\x1b[2J\x1b]0;t\x07") == "\\u001b[2J\\u001b]0;t\\u0007"
    text = "caf\u00e9 \U0001f600 \u05d0\u200f \u3042\n\ttab"
    assert printable(text) == text
    clean(printable(HOSTILE))


def test_json_stays_json() -> None:
    text = json.dumps({"said": HOSTILE}, ensure_ascii=False)
    assert json.loads(printable(text.encode("utf-8", "replace").decode()))["said"] == HOSTILE.replace("\ud800", "?")


@pytest.mark.parametrize("error", [EngineError(f"it said {HOSTILE}"), RewardError(HOSTILE, file=HOSTILE, hint=HOSTILE)])
def test_an_error_s_text_is_escaped(
    error: PosttrainError, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == error.exit_code
    assert "\\u001b[2J\\u001b]0;title\\u0007" in clean(capsys.readouterr().err)


def test_a_traceback_is_escaped_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise KeyError(HOSTILE, OSError(HOSTILE))

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert "Traceback" in clean(capsys.readouterr().err)


@pytest.mark.parametrize("live", [False, True])
def test_progress_metrics_and_tables_are_escaped(
    live: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: live, raising=False)
    terminal = Terminal(lambda number: HOSTILE, every=0.0)
    terminal.runs_again(HOSTILE)
    terminal.started(1, "samples")
    terminal.progress(1, "samples", 1, 2, HOSTILE)
    terminal.tries_again(1, "samples", HOSTILE)
    terminal.started(1, "samples")
    terminal.finished(1, "samples", 1.0, {"constant": {HOSTILE: 0.0}, "collapsed": HOSTILE})
    terminal.round_done(1, ran=True)
    terminal.note(HOSTILE)
    out = capsys.readouterr().out
    assert out.count("\\u001b[2J") >= 6
    clean(out.replace("\r\x1b[K", ""))  # our own: it clears the line that is rewritten


def test_say_escapes_on_both_ways_out(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(ValueError(HOSTILE), error=True)
    said = capsys.readouterr()
    assert clean(said.out) and clean(said.err)


def test_what_libraries_log_and_warn_of_is_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        handler = logging.StreamHandler()
        logger = logging.getLogger("a library of somebody's")
        logger.addHandler(handler)
        try:
            logger.warning("it said %s", HOSTILE)
            raise OSError(HOSTILE)
        except OSError as error:
            logger.exception("failed")
            sys.stderr.write(warnings.formatwarning(UserWarning(HOSTILE), UserWarning, "model.py", 1))
            raise EngineError("the end") from error
        finally:
            logger.removeHandler(handler)

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    before = logging.getLogRecordFactory()
    try:
        with pytest.raises(SystemExit, match="3"):
            cli.main()
    finally:
        logging.setLogRecordFactory(before)
    said = clean(capsys.readouterr().err)
    assert said.count("title") == 3 and "OSError" in said and "UserWarning" in said


def test_only_terminal_py_writes_to_the_terminal() -> None:
    """A print elsewhere would go round the escaping; ruff's T20 says so of `print` alone."""
    found = []
    for path in (ROOT / "posttrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write", "sys.stderr.write"):
                found.append((path.name, called))
    # launch: what it writes there is the log of a stage, and has been through `shown`
    assert set(found) == {("terminal.py", "print"), ("launcher.py", "sys.stderr.write")}


def test_what_a_stage_prints_into_its_log_is_escaped(tmp_path: Path) -> None:
    log = Log((tmp_path / "log.txt").open("ab"), encoding="utf-8", errors="replace", line_buffering=True)
    print(HOSTILE, file=log)
    log.write("loading  10%\rloading 100%\r\n")
    log.close()
    text = (tmp_path / "log.txt").read_text("utf-8")
    assert clean(text).endswith("loading  10%\nloading 100%\n")
