"""docs/tutorial.md and docs/writing-a-reward.md: their files are written out, their golden cases come out, and all
commands of the tutorial run in its order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.config import RewardEntry
from posttrain.rewards.functions import load as load_reward
from posttrain.rewards.golden_cases import wrong_cases

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"# ([\w-]+(?:\.\w+)+)\n")
SMALL = {
    '":600"': '":200"',
    '"600:700"': '"600:630"',
    '"700:900"': '"700:730"',
    "prompts: 300": "prompts: 60",
}
FEWER = {"--n 2": "--n 1", "--n 3": "--n 1"}  # and the check without its probe, which plays a round itself


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "docs" / page).read_text("utf-8"))


def write(page: str, folder: Path) -> list[str]:
    """The files of a page: blocks that begin with a comment that holds a name."""
    names = []
    for kind, body in blocks(page):
        if found := NAMED.match(body):
            text = body[found.end() :] if kind == "jsonl" else body
            (folder / found[1]).write_text(text, "utf-8")
            names.append(found[1])
    return names


@pytest.mark.parametrize(("page", "file"), [("tutorial.md", "sums.py"), ("writing-a-reward.md", "keys.py")])
def test_a_reward_of_the_docs_is_short_and_gives_its_golden_cases(tmp_path: Path, page: str, file: str) -> None:
    assert {file, file.replace(".py", ".cases.jsonl")} <= set(write(page, tmp_path))
    lines = (tmp_path / file).read_text("utf-8").strip().splitlines()
    assert len([line for line in lines[1:] if line.strip()]) <= 20
    reward = load_reward(RewardEntry(use=str(tmp_path / file)))
    assert wrong_cases(reward) == []
    cases = tmp_path / file.replace(".py", ".cases.jsonl")
    cases.write_text(cases.read_text("utf-8").replace('"expected": 1.0', '"expected": 0.9'), "utf-8")
    assert len(wrong_cases(reward)) == 1


def test_a_reward_of_the_docs_serves_trl(tmp_path: Path) -> None:
    """Called as GRPOTrainer calls it: by name, with more columns than the function takes."""
    write("tutorial.md", tmp_path)
    made: dict = {}
    exec((tmp_path / "sums.py").read_text("utf-8"), made)
    answers = [[{"role": "assistant", "content": text}] for text in ("2 + 3 = 5. Answer: 5", "Answer: 6", "")]
    given = {"prompts": [[]] * 3, "completions": answers, "completion_ids": [[]] * 3, "total": ["5", 5, 5]}
    assert made["right_total"](**given, trainer_state=None) == [1.0, 0.0, 0.0]


@pytest.mark.slow
def test_the_tutorial_runs_in_its_order(tmp_path: Path) -> None:
    write("tutorial.md", tmp_path)
    recipe = (tmp_path / "mine.yaml").read_text("utf-8")
    for old, new in SMALL.items():
        assert old in recipe
        recipe = recipe.replace(old, new)
    (tmp_path / "mine.yaml").write_text(f"{recipe}promote: always\n", "utf-8")  # by 30 prompts the gate may not
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    said: dict[str, list[str]] = {}
    for kind, body in blocks("tutorial.md"):
        if kind == "python" and not NAMED.match(body):
            lines = [[sys.executable, "-c", body]]
        elif kind == "console":
            lines = [words(line) for line in body.splitlines()]
        else:
            continue
        for line in lines:
            done = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, " ".join(line) + done.stdout[-2000:] + done.stderr[-2000:]
            said.setdefault(" ".join(line[3:]), []).append(done.stdout)
    again = said["round ./mine.yaml --n 1 --set dpo.beta=0.1"][0]
    assert "dpo of round 1 runs again: dpo.beta 0.03 → 0.1" in again and "sft of round 1" not in again
    first, last, _ = said["round ./mine.yaml --n 1"]
    assert "begins" in first and "begins" not in last  # without --set all of it is there
    assert any("best-of-k" in output for output in said[""])  # the look at what was dropped


def words(line: str) -> list[str]:
    for many, few in FEWER.items():
        line = line.replace(many, few)
    program, *rest = shlex.split(line, comments=True)
    if program != "posttrain":
        return [sys.executable, *rest]
    return [sys.executable, "-m", "posttrain", *rest, *(["--no-probe"] if rest[0] == "check" else [])]
