"""What a stage finds out by itself: answers and scores from which nothing can be learned, a reward that hangs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.parrot import ENDS, GOES_ON, save

from posttrain import rewards
from posttrain.commands.terminal import summary
from posttrain.config import RewardEntry
from posttrain.data.tables import SAMPLED, SCORED_ANSWERS
from posttrain.errors import EmptyStageError, RewardError, StageError
from posttrain.job import Job
from posttrain.rewards.checks import Shares, check_scores, collapsed, constant, shares
from posttrain.stages import run_stage

# What a stage `answers` is told of training prompts that nothing is special about.
ASKED = {"set": "train", "where": {}, "tag": "", "greedy": False, "further": [], "system": None}


def says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def answers(path: Path, texts: list[str], finish: str = "stop", reward: float = 1.0) -> Path:
    rows = [
        {
            "prompt_id": str(at),
            "sample_index": 0,
            "tag": SAMPLED,
            "prompt": says("user", f"{at}?"),
            "completion": says("assistant", text),
            "finish": finish,
            "rewards": json.dumps({"check": reward}),
            "columns": "{}",
        }
        for at, text in enumerate(texts)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED_ANSWERS), path)
    return path


def test_shares_of_a_table(tmp_path: Path) -> None:
    assert shares(answers(tmp_path / "a.parquet", ["", " \n", "7", "8"])) == Shares(0.5, 0.0)
    assert shares(answers(tmp_path / "b.parquet", ["7", "8"], "length")) == Shares(0.0, 1.0)


@pytest.mark.parametrize(
    ("now", "before", "fallen"),
    [
        (Shares(1.0, 0.0), Shares(0.0, 0.1), True),
        (Shares(0.0, 1.0), Shares(0.0, 0.1), True),
        (Shares(0.0, 1.0), Shares(0.0, 0.9), False),  # a base model that never stops, and its successor
        (Shares(0.9, 0.0), Shares(0.0, 0.0), False),
    ],
)
def test_a_policy_has_collapsed_only_beside_the_one_before(now: Shares, before: Shares, fallen: bool) -> None:
    assert (collapsed(now, before) is not None) == fallen


def sampling(folder: Path, prompt: str) -> Job:
    """Samples of the parrot, which says after the prompt's last character what that stands for."""
    rows = [{"id": str(at), "prompt": says("user", f"{at}{prompt}"), "columns": "{}", "line": at} for at in range(4)]
    for name in ("prompts", "out", "scratch"):
        (folder / name).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts" / "train.parquet")
    config = {
        **ASKED,
        "answers": {"k": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8},
        "take": {"seed": 0, "start": 0, "count": None},
        "engine": {"use": "plain", "dtype": "float32", "shard_tokens": 64},
    }
    inputs = {"prompts": folder / "prompts", "policy": save(folder / "dpo-1234")}
    # No header: the prompt's last character decides what the parrot says.
    (inputs["policy"] / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return Job(config, inputs, folder / "out", folder / "scratch", 0)


def test_sampling_stops_where_the_policy_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"answers: the policy has collapsed: 100% of its answers are empty. It is dpo-"
    ):
        run_stage("answers", sampling(tmp_path / "empty", ENDS))
    figures = run_stage("answers", sampling(tmp_path / "endless", GOES_ON))
    assert figures["finished"] == 0  # a base model may


def gate(folder: Path, rule: str) -> Job:
    inputs = {role: folder / role for role in ("candidate", "incumbent")}
    answers(inputs["candidate"] / "dev.parquet", ["Answer: 7 " * 9] * 8, "length", 1.0)
    answers(inputs["incumbent"] / "dev.parquet", ["Answer: 8"] * 8, "stop", 0.0)
    (folder / "check.py").write_text("def check(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    config = {
        "promote": rule,
        "rewards": [RewardEntry(use=str(folder / "check.py")).model_dump(mode="json", by_alias=True)],
    }
    return Job(config, inputs, folder / "out", folder / "scratch", 0)


def test_the_gate_leaves_out_a_collapsed_policy_and_stops_where_it_must_promote(tmp_path: Path) -> None:
    made = run_stage("promote", gate(tmp_path / "better", "better"))
    assert made["value"] > 0 and made["promoted"] is False  # it is right more often, and does not end
    assert "100% of its answers do not end (before: 0%)" in summary("promote", made)
    with pytest.raises(StageError, match="promote: the policy has collapsed: 100% of its answers do not end"):
        run_stage("promote", gate(tmp_path / "always", "always"))


def test_a_constant_reward_is_told_and_stops_where_none_is_right() -> None:
    values: list[dict[str, float | None]] = [{"a": 0.0, "b": at / 9, "c": None} for at in range(100)]
    assert constant(values, ["a", "b", "c"]) == {"a": 0.0}
    assert "warning: every answer got 0 of a" in summary("scores", {"constant": {"a": 0.0}})
    with pytest.raises(EmptyStageError, match="all 100 answers have the score 0 "):
        check_scores([0.0] * 100, {"a": 0.0})
    check_scores([0.0] * 99, {"a": 0.0})  # few may all be wrong by chance
    check_scores([1.0] * 100, {"a": 1.0})  # all right: nothing is wrong with the reward
    check_scores([0.0] * 99 + [0.1], {})


HANGS = """\
import time


def slow(prompts, completions, **columns):
    for prompt in prompts:
        if "three" in prompt[-1]["content"]:
            try:
                time.sleep(60)
            except Exception:
                pass
    {tail}
    return [1.0 for _ in prompts]
"""


def asked(tmp_path: Path, tail: str, texts: list[str], seconds: float) -> list[float | None]:
    path = tmp_path / "slow.py"
    path.write_text(HANGS.replace("{tail}", tail))
    reward = rewards.load(RewardEntry(use=str(path)), rewards.Runtime(minutes=seconds / 60))
    prompts: list[list[Any]] = [says("user", text) for text in texts]
    return reward(prompts, [says("assistant", "x") for _ in texts], {})


def test_a_reward_that_hangs_is_named_with_its_line_and_the_prompt(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        asked(tmp_path, "pass", ["one", "two", "three", "four"], 0.2)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'slow.py'}:8: slow() did not return within 0.2 s for 4 rows")
    assert "hangs on row 2, the prompt 'three'" in said
    assert not isinstance(
        caught.value, RewardError
    )  # shards that are done stay: the key does not change with the limit


def test_a_reward_that_is_slow_on_all_together_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"for 4 rows, though it does for each alone; raise compute\.reward_minutes.*\[reward-slow\]"
    ):
        asked(tmp_path, "time.sleep(0.1 * len(prompts) ** 2)", ["one", "two", "two", "four"], 1.2)
    assert asked(tmp_path, "pass", ["one"], 60) == [1.0]


def test_the_limit_breaks_into_a_regular_expression(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        'import re\n\ndef slow(prompts, completions):\n    return [re.match("(a+)+$", "a" * 40 + "b")]\n'
    )
    reward = rewards.load(RewardEntry(use=str(tmp_path / "slow.py")), rewards.Runtime(minutes=0.1 / 60))
    began = time.monotonic()
    with pytest.raises(StageError, match=r"slow\.py:4: slow\(\) did not return within 0\.1 s .*\[reward-hangs\]"):
        reward([says("user", "?")], [says("assistant", "x")], {})
    assert time.monotonic() - began < 5
