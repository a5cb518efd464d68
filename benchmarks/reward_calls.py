"""What it costs that reward functions run in a process of their own: its start, and each call.

    python benchmarks/reward_calls.py [--repeats 20] [--json FILE]

The shipped reward of word problems. `here`: the function called in this process. `apart`: through the client that every
stage uses. Means over the repeats, in turn, of the CPU time of both processes together (Linux), so that other work on
the machine counts little; medians of the start, and how long the caller waits.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from posttrain.config import RewardEntry
from posttrain.rewards import client
from posttrain.rewards.functions import Reward, load

ROWS = (1, 100, 1000, 10000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    reward = load(RewardEntry(use="word-problems.py"))
    starts = [_start(reward) for _ in range(given.repeats)]
    found: dict[str, Any] = {
        "start_returns_ms": statistics.median(one for one, _, _ in starts),
        "start_until_first_answer_ms": statistics.median(one for _, one, _ in starts),
        "start_cpu_ms": statistics.median(one for _, _, one in starts),
        "calls": [_compared(reward, rows, given.repeats) for rows in ROWS],
    }
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def _start(reward: Reward) -> tuple[float, float, float]:
    """Milliseconds until `start` comes back, until the first answer, and of the CPU of the new process."""
    before, began = _cpu(_others()), time.perf_counter()
    client.process(reward.file, reward.sha256)
    back = time.perf_counter()
    reward([[]], [[{"role": "assistant", "content": "1"}]], {"answer": ["1"]})
    ready = time.perf_counter()
    used = _cpu(_others()) - before
    made = client.process(reward.file, reward.sha256)
    made.close()
    return 1000 * (back - began), 1000 * (ready - began), used


def _compared(reward: Reward, rows: int, repeats: int) -> dict[str, float]:
    function = runpy.run_path(reward.file)[reward.function]
    prompts = [
        [{"role": "user", "content": f"Mia has {row} apples and buys {row % 7} more. How many?"}] for row in range(rows)
    ]
    answers = [
        [{"role": "assistant", "content": f"{row} + {row % 7} = {row}.\n\nAnswer: {row}"}] for row in range(rows)
    ]
    columns = {"answer": [str(row + row % 7) for row in range(rows)]}
    sides: dict[str, Callable[[], list[float | None]]] = {
        "here_ms": lambda: function(prompts=prompts, completions=answers, **columns),
        "apart_ms": lambda: reward(prompts, answers, columns),
    }
    assert sides["here_ms"]() == sides["apart_ms"]()
    used, others = dict.fromkeys(sides, 0.0), _others()
    for _ in range(repeats):
        for name, side in sides.items():
            began = _cpu(others)
            side()
            used[name] += _cpu(others) - began
    return {"rows": rows, **{name: value / repeats for name, value in used.items()}}


def _others() -> list[Path]:
    """What the system says of the processes that this one started."""
    return [Path(f"/proc/{one.pid}/schedstat") for one in psutil.Process().children(recursive=True)]


def _cpu(others: Sequence[Path]) -> float:
    """Milliseconds that this process and those have had of a core."""
    return 1000 * time.process_time() + sum(int(path.read_text().split()[0]) for path in others) / 1e6


if __name__ == "__main__":
    main()
