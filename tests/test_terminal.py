"""What a person sees while a run goes: on a terminal, and in a log file."""

import pytest

from posttrain.commands.terminal import Terminal, duration, pace


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
