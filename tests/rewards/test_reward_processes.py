"""What people's reward code does to a process: pools, alarms, exits, crashes, loops; none of it reaches a stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from posttrain import rewards
from posttrain.config import RewardEntry
from posttrain.errors import PosttrainError, RewardError, StageCrashedError, StageError
from posttrain.rewards import client
from posttrain.rewards.functions import Reward, load

PROMPTS: list[list[Any]] = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
ANSWERS: list[list[Any]] = [[{"role": "assistant", "content": text}] for text in ("1", "22", "333")]
IMPORTS = "import concurrent.futures, ctypes, math, multiprocessing, os, signal, sys, threading, time\n"
ODD = """
class Odd(list):
    def {method}(self, *_):
        {does}
"""
LENGTH = """
def length(answer):
    return float(len(answer[-1]["content"]))
"""


def loaded(folder: Path, body: str, before: str = "", name: str = "mine.py", seconds: float | None = 60) -> Reward:
    text = IMPORTS + before + "\n\ndef f(prompts, completions, **columns):\n"
    (folder / name).write_text(text + "".join(f"    {line}\n" for line in body.splitlines()))
    return load(RewardEntry(use=str(folder / name), function="f"), rewards.Runtime(minutes=seconds and seconds / 60))


def asked(reward: Reward) -> list[float | None]:
    return reward(PROMPTS, ANSWERS, {})


def gone(pids: list[int], within: float) -> bool:
    """Whether none of these runs any more after so many seconds. One that nobody waited for yet is not counted."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not alive:
            return True
        time.sleep(0.02)
    return False


POOL = """\
with multiprocessing.get_context("{how}").Pool(2) as pool:
    return pool.map(length, completions)"""
EXECUTOR = """\
with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("{how}")) as pool:
    return list(pool.map(length, completions))"""


class TestWorks:
    @pytest.mark.parametrize("name", ["mine.py", "word-problems.py"])
    @pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
    def test_pools(self, tmp_path: Path, how: str, name: str) -> None:
        body = POOL if name == "mine.py" else EXECUTOR
        reward = loaded(tmp_path, body.replace("{how}", how), LENGTH, name)
        assert asked(reward) == asked(reward) == [1.0, 2.0, 3.0]

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param(
                "with concurrent.futures.ThreadPoolExecutor(4) as pool:\n"
                "    return list(pool.map(length, completions))",
                id="threads",
            ),
            pytest.param(
                "signal.signal(signal.SIGALRM, lambda *_: sys.exit(1))\nsignal.alarm(1)\n"
                "return [length(one) for one in completions]",
                id="an alarm that is left",
            ),
            pytest.param(
                "multiprocessing.set_start_method('spawn', force=True)\nos.umask(0o777)\nsys.stdout.close()\n"
                "return [length(one) for one in completions]",
                id="settings of the process",
            ),
            pytest.param(
                "if os.fork() == 0:\n    return [9.0] * 3\nos.wait()\nreturn [length(one) for one in completions]",
                id="a fork that comes back twice",
            ),
        ],
    )
    def test_calls_of_the_process(self, tmp_path: Path, body: str) -> None:
        before = (os.getcwd(), signal.getsignal(signal.SIGALRM), sys.stdout.closed)
        reward = loaded(tmp_path, body, LENGTH)
        assert asked(reward) == asked(reward) == [1.0, 2.0, 3.0]
        assert (os.getcwd(), signal.getsignal(signal.SIGALRM), sys.stdout.closed) == before

    def test_each_call_begins_in_the_folder_of_the_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        reward = loaded(tmp_path, "known = float(os.path.exists('mine.py'))\nos.chdir('/')\nreturn [known] * 3")
        assert asked(reward) == asked(reward) == [1.0] * 3
        assert os.getcwd() == str(tmp_path)

    def test_math_verify_and_its_alarm(self, tmp_path: Path) -> None:
        pytest.importorskip("math_verify")
        body = "return [float(verify(parse('$2$'), parse(f'${len(one[-1]['content'])}$'))) for one in completions]"
        reward = loaded(tmp_path, body.replace("['content']", '["content"]'), "from math_verify import parse, verify\n")
        assert asked(reward) == [0.0, 1.0, 0.0]

    @pytest.mark.parametrize(
        "result",
        [
            "numpy.array([1, 0, 1], dtype=numpy.float32)",
            "[numpy.float32(1), numpy.array(0.0), numpy.bool_(True)]",
            "(True, False, 1)",
            "torch.tensor([1.0, 0.0, 1.0])",
            "[torch.tensor(1.0, requires_grad=True), torch.tensor(0), torch.tensor(True)]",
        ],
    )
    def test_numbers_of_libraries(self, tmp_path: Path, result: str) -> None:
        library = "torch" if "torch" in result else "numpy"
        assert asked(loaded(tmp_path, f"return {result}", f"import {library}\n")) == [1.0, 0.0, 1.0]

    def test_floats_come_as_they_are(self, tmp_path: Path) -> None:
        body = "return [0.1 + 0.2, None, sys.float_info.min]"
        assert asked(loaded(tmp_path, body)) == [0.1 + 0.2, None, sys.float_info.min]

    def test_what_it_prints_is_not_lost(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        reward = loaded(tmp_path, "print('from f')\nos.write(1, b'raw\\n')\nreturn [1.0] * 3")
        assert asked(reward) == [1.0] * 3
        said = capfd.readouterr()
        assert said.out == "" and "from f\nraw\n" in said.err  # of a stage both go to its log

    def test_files_share_no_process(self, tmp_path: Path) -> None:
        mean = loaded(tmp_path, "os._exit(0)", name="mean.py")
        kind = loaded(tmp_path, "f.calls = getattr(f, 'calls', 0) + 1\nreturn [f.calls] * 3", name="kind.py")
        assert asked(kind) == [1.0] * 3
        with pytest.raises(RewardError):
            asked(mean)
        assert asked(kind) == [2.0] * 3

    def test_threads_ask_one_after_the_other(self, tmp_path: Path) -> None:
        reward, found = loaded(tmp_path, "time.sleep(0.02)\nreturn [1.0, None, 2.0]"), []
        threads = [threading.Thread(target=lambda: found.append(asked(reward))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [[1.0, None, 2.0]] * 8

    def test_a_process_that_was_forked_asks_its_own(self, tmp_path: Path) -> None:
        reward = loaded(tmp_path, "return [float(os.getpid())] * 3")
        (mine, *_) = asked(reward)
        there, here = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(here, str(asked(reward)[0]).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert float(os.read(there, 99)) != mine
        assert asked(reward)[0] == mine


class TestEnds:
    @pytest.mark.parametrize(
        ("body", "before", "rule", "says"),
        [
            ("sys.exit(0)", "", "reward-exit", "mine.py:5: f() raised SystemExit: 0"),
            ("exit()", "", "reward-exit", "mine.py:5: f() raised SystemExit"),
            ("os._exit(0)", "", "reward-exit", "mine.py: f() ended its process with code 0"),
            ("raise KeyboardInterrupt", "", "reward-exit", "mine.py:5: f() raised KeyboardInterrupt"),
            ("return [1.0] * 3", "exit()", "reward-exit", "mine.py:2: importing the file raised SystemExit"),
            ("return [1.0] * 3", "os._exit(3)", "reward-exit", "importing the file ended its process with code 3"),
            ("return [1.0] * 3", "1 / 0", "reward-import", "mine.py:2: importing the file raised ZeroDivisionError"),
            ("ctypes.string_at(0)", "", "reward-crash", "mine.py:5: f() crashed its process with SIGSEGV"),
            ("os.abort()", "", "reward-crash", "mine.py:5: f() crashed its process with SIGABRT"),
            ("raise MemoryError", "", "reward-raised", "mine.py:5: f() raised MemoryError"),
            ("return math.nan", "", "reward-no-list", "mine.py:4: f() returned float, not a list"),
            ("return numpy.array(1.0)", "import numpy", "reward-no-list", "f() returned ndarray, not a list"),
            ("return {1.0, 2.0, 3.0}", "", "reward-no-list", "f() returned set, not a list"),
            ("return [1.0]", "", "reward-length", "f() returned 1 scores for 3 rows"),
            ("return [1.0, 10 ** 400, 1.0]", "", "reward-number", "for row 1, which is no finite number"),
            ("return [1.0, numpy.zeros(2), 1]", "import numpy", "reward-number", "returned array([0., 0.]) for row 1"),
        ],
    )
    def test_told_with_file_and_line(self, tmp_path: Path, body: str, before: str, rule: str, says: str) -> None:
        with pytest.raises(RewardError) as caught:
            asked(loaded(tmp_path, body, before))
        assert says in str(caught.value)
        assert (caught.value.rule, caught.value.exit_code) == (rule, 2)

    @pytest.mark.parametrize("does", ["raise KeyError('odd')", "sys.exit(0)", "raise KeyboardInterrupt"])
    @pytest.mark.parametrize("method", ["tolist", "__len__", "__iter__"])
    def test_a_result_that_cannot_be_read(self, tmp_path: Path, method: str, does: str) -> None:
        before = ODD.replace("{method}", method).replace("{does}", does)
        with pytest.raises(
            RewardError, match=r"f\(\) returned Odd, which cannot be read as a list: it raised"
        ) as caught:
            asked(loaded(tmp_path, "return Odd([1.0] * 3)", before))
        assert (caught.value.rule, caught.value.exit_code) == ("reward-no-list", 2)

    @pytest.mark.parametrize(
        ("method", "does", "body", "rule", "says"),
        [
            (
                "__float__",
                "raise KeyError('odd')",
                "return [1.0, Odd(), 1.0]",
                "reward-number",
                "returned [] for row 1",
            ),
            ("__len__", "return 3", "return Odd([1.0])", "reward-length", "returned 1 scores for 3 rows"),
            (
                "__iter__",
                "return iter(int, 1)",
                "return Odd([1.0] * 3)",
                "reward-length",
                "more than 3 scores",
            ),
        ],
    )
    def test_a_result_that_is_not_what_it_says(
        self, tmp_path: Path, method: str, does: str, body: str, rule: str, says: str
    ) -> None:
        with pytest.raises(RewardError) as caught:
            asked(loaded(tmp_path, body, ODD.replace("{method}", method).replace("{does}", does)))
        assert caught.value.rule == rule and says in str(caught.value)

    @pytest.mark.parametrize(
        ("method", "body"),
        [("__len__", "return Odd([1.0] * len(prompts))"), ("__iter__", "return Odd([1.0] * len(prompts))"),
         ("__float__", "return [Odd() for _ in prompts]")],
    )  # fmt: skip
    def test_a_result_that_never_ends_as_it_is_read(self, tmp_path: Path, method: str, body: str) -> None:
        before = ODD.replace("{method}", method).replace("{does}", "time.sleep(60)")
        told = r"mine\.py:5: f\(\) returned, and reading what it returned .* within 0\.3 s .* row 0.*\[reward-hangs\]"
        with pytest.raises(StageError, match=told):
            asked(loaded(tmp_path, body, before, seconds=0.3))

    def test_a_kill_from_outside_is_told_and_tried_again(self, tmp_path: Path) -> None:
        reward = loaded(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
        with pytest.raises(
            StageCrashedError, match=r"mine\.py: the process of f\(\) was killed by SIGKILL .*\[reward-killed\]"
        ):
            asked(reward)  # see recovery.next_try

    def test_one_that_hangs_in_native_code_is_killed_with_its_children(self, tmp_path: Path) -> None:
        body = (
            "child = multiprocessing.Process(target=time.sleep, args=(60,))\nchild.start()\n"
            f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} {{child.pid}} ')\n"
            "ctypes.PyDLL(None).sleep(60)"  # holds the interpreter's lock
        )
        reward = loaded(tmp_path, body, seconds=0.3)
        with pytest.raises(StageError, match=r"mine\.py:8: f\(\) did not return within 0\.3 s.*hangs on row 0"):
            asked(reward)
        assert gone([int(pid) for pid in (tmp_path / "pids").read_text().split()], 2)

    def test_an_import_that_hangs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "_IMPORT", 0.5)
        with pytest.raises(StageError, match=r"mine\.py:2: importing the file did not end .*\[reward-import-hangs\]"):
            asked(loaded(tmp_path, "pass", "time.sleep(60)", seconds=0.5))

    @pytest.mark.parametrize("where", ["exit", "os._exit"])
    def test_a_call_after_it_ended_starts_anew(self, tmp_path: Path, where: str) -> None:
        reward = loaded(tmp_path, f"if not os.path.exists({str(tmp_path / 'once')!r}):\n"
                        f"    open({str(tmp_path / 'once')!r}, 'w')\n    {where}(1)\nreturn [1.0] * 3")  # fmt: skip
        with pytest.raises(PosttrainError):
            asked(reward)
        assert asked(reward) == [1.0] * 3


def test_where_a_fork_will_not_do_the_worker_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_there = "import runpy, sys\nsys.platform = 'darwin'\nrunpy.run_path({!r}, run_name='__main__')\n"
    (tmp_path / "there.py").write_text(as_there.format(client._WORKER))
    monkeypatch.setattr(client, "_WORKER", str(tmp_path / "there.py"))
    started = "open('/proc/self/cmdline').read().split(chr(0))[-2] == 'serve'"  # not the guard's own command line
    reward = loaded(tmp_path, f"return [float({started}), None, length(completions[1])]", LENGTH)
    assert asked(reward) == asked(reward) == [1.0, None, 2.0]
    with pytest.raises(RewardError, match=r"ended its process with code 0 \[reward-exit\]"):
        asked(loaded(tmp_path, "os._exit(0)", name="ends.py"))
    with pytest.raises(StageError, match=r"hangs\.py:5: f\(\) did not return within 0\.3 s"):
        asked(loaded(tmp_path, "time.sleep(60)", name="hangs.py", seconds=0.3))


STAGE = """
import sys
from posttrain import rewards
from posttrain.config import RewardEntry
reward = rewards.load(RewardEntry(use=sys.argv[1]))
reward([[]], [[]], {})
"""


@pytest.mark.parametrize("busy", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)"])
def test_nothing_is_left_of_a_stage_that_was_killed(tmp_path: Path, busy: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        f"{IMPORTS}\ndef f(prompts, completions, **columns):\n    pool = multiprocessing.Pool(2)\n"
        f"    open({str(tmp_path / 'ready')!r}, 'w')\n    {busy}\n"
    )
    stage = subprocess.Popen([sys.executable, "-c", STAGE, str(path)])
    until = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.02)
    started = [one.pid for one in psutil.Process(stage.pid).children(recursive=True)]
    assert len(started) == 4  # the guard, the worker, two of its pool
    stage.kill()
    stage.wait()
    assert gone(started, 2)
