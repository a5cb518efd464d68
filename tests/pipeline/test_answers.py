"""An edit of what judges answers samples none again; one that changes no score makes nothing else anew."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from support.faults import REDUCED
from support.loop_runs import METRICS, FakeLauncher, go

from posttrain import shipped
from posttrain.stages.registry import STAGES
from posttrain.storage import store
from posttrain.storage.files import read_json
from posttrain.storage.store import Store

TRAINED = {name for name, one in STAGES.items() if one.trained}
READERS = shipped.locate("reward", "readers.py")
CHECK = shipped.locate("reward", "word-problems.py")


def said(path: Path) -> str:
    """What a file of Python does, without its comments."""
    words = tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline)
    return "".join(word.string for word in words if word.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE))


class Judged(FakeLauncher):
    """Stages whose bytes follow from config and inputs, and where rewards judge from what these say."""

    def __init__(self, rewards: Path) -> None:
        super().__init__()
        self.rewards = rewards

    def run(self, folder: Path) -> None:
        stage = read_json(folder / "stage.json")
        self.ran.append(stage["role"])
        root = folder.parent.parent
        read = {role: root / path / "payload" for role, path in stage["inputs"].items()}
        read = {role: path.read_text() for role, path in read.items() if path.exists()}
        judges = {name: said(self.rewards / name) for name in stage["outside"] if (self.rewards / name).exists()}
        made = json.dumps([stage["stage"], stage["config"], read, judges], sort_keys=True)
        (folder / "out" / "payload").write_text(hashlib.sha256(made.encode()).hexdigest())
        described = {name: stage[name] for name in ("stage", "key", "input_keys", "outside", "config")}
        metrics = METRICS.get(stage["stage"], {}) | ({"ci95": [0.1, 0.2]} if stage["stage"] == "promote" else {})
        store.publish(folder, root / "artifacts", {**described, "seconds": 1.0, "metrics": metrics})


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    folder = tmp_path / "rewards"
    folder.mkdir()
    for path in (READERS, CHECK):
        (folder / path.name).write_text(path.read_text("utf-8"), "utf-8")
    return folder


def again(root: Path, rewards: Path, *overrides: str) -> tuple[list[str], list[str]]:
    entries = [
        {"use": str(rewards / CHECK.name), "for": "scores"},
        {"use": "reward-model", "weight": 0.2},
        {"use": str(rewards / READERS.name), "for": "preferences"},
    ]
    return go(root, 1, f"reward={json.dumps(entries)}", *overrides, launcher=Judged(rewards))


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), "utf-8")


COUNTS = """\
def mine(prompts, completions):
    assert not any("{}" in prompt[0]["content"] for prompt in prompts)
    return [len(completion[0]["content"]) % 2 for completion in completions]
"""
LEFT_OUT = ("preferences", "reward_model", "pairs", "dpo")

# Of a round, the answers of policies that are there before anything is trained.
EXISTING = {"answers_preferences", "answers_preferences_previous", "answers_samples", "answers_dev", "answers_heldout"}


@pytest.mark.parametrize(
    "changes",
    [
        ["reward.1.weight=0.3"],
        ["filters=[{use: format}]"],
        ["preferences.levels.better=0.2"],
        ["pairs.margin=0.1"],
        ["evaluate.measure=[]"],
        ["promote=better"],
    ],
)
def test_an_edit_of_what_judges_samples_nothing_from_a_policy_that_exists(
    tmp_path: Path, rewards: Path, changes: list[str]
) -> None:
    assert set(again(tmp_path / "run", rewards)[0]) >= EXISTING
    before = sampled(tmp_path / "run")
    ran, _ = again(tmp_path / "run", rewards, *changes)
    assert ran
    after = sampled(tmp_path / "run")
    assert not {after[key] for key in after.keys() - before.keys()} & set(before.values())


def sampled(root: Path) -> dict[str, str]:
    """By artifact of answers, the policy that gave them."""
    made = sorted(path.name for path in (root / "artifacts").glob("answers-*"))
    return {key: Store(root).manifest(key)["input_keys"]["policy"] for key in made}


def test_another_score_samples_anew_only_from_what_is_trained_anew(tmp_path: Path, rewards: Path) -> None:
    again(tmp_path / "run", rewards)
    edit(rewards / CHECK.name, "1.0", "0.5")
    ran, _ = again(tmp_path / "run", rewards)
    assert [name for name in ran if name.startswith("answers")] == ["answers_pairs", "answers_dev", "answers_heldout"]
    assert "reward_model" not in ran and "preferences" not in ran
    edit(rewards / READERS.name, "def ", "def changed_")
    ran, _ = again(tmp_path / "run", rewards)
    assert ran[:2] == ["preferences", "reward_model"]
    assert not {"answers_preferences", "answers_preferences_previous", "answers_samples"} & set(ran)


def test_an_edit_that_changes_no_score_samples_and_trains_nothing(tmp_path: Path, rewards: Path) -> None:
    again(tmp_path / "run", rewards)
    before = Store(tmp_path / "run").read_run()["rounds"]
    for path in (rewards / CHECK.name, rewards / READERS.name):
        path.write_text(path.read_text("utf-8") + "\n# nothing\n", "utf-8")
    ran, told = again(tmp_path / "run", rewards)
    assert not [name for name in ran if name.startswith("answers")] and not TRAINED & set(ran)
    assert "filters" not in ran and "scores" in ran and "preferences" in ran
    assert "scores of round 1: same result as before" in told
    after = Store(tmp_path / "run").read_run()["rounds"]
    assert after[1]["stages"]["sft"] == before[1]["stages"]["sft"] and after[1]["policy"] == before[1]["policy"]
    assert after[1]["stages"]["scores"] != before[1]["stages"]["scores"]  # its own figures are shown
    assert again(tmp_path / "run", rewards) == ([], [])  # and what was found the same is known to be


def test_what_was_handed_on_stays_where_the_first_of_its_kind_is_gone(tmp_path: Path, rewards: Path) -> None:
    root = tmp_path / "run"
    again(root, rewards)
    first = Store(root).read_run()["rounds"][1]["stages"]["scores"]
    edit(rewards / CHECK.name, "\n", "\n# nothing\n")
    again(root, rewards)
    with Store(root).session():
        Store(root).set_aside(first)
    assert again(root, rewards) == ([], [])


@pytest.mark.slow
def test_a_reward_that_raises_on_the_last_row_loses_no_answer(tmp_path: Path) -> None:
    """A real run: its scores fail at the end, and once the file is mended nothing is sampled that was."""
    import pyarrow.parquet as pq

    reward, run = tmp_path / "mine.py", tmp_path / "run"
    changes = {key: value for key, value in REDUCED.items() if key.partition(".")[0] not in LEFT_OUT}
    changes |= {"reward": f"[{{use: {reward}}}]", **dict.fromkeys(LEFT_OUT, "null")}
    command = [sys.executable, "-m", "posttrain", "round", "--n", "1", "--run", str(run)]
    command += [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]

    def with_reward(fails_at: str) -> subprocess.CompletedProcess[str]:
        reward.write_text(COUNTS.replace("{}", fails_at), "utf-8")
        return subprocess.run(command, capture_output=True, text=True)

    first = with_reward("no such words")
    assert first.returncode == 0, first.stderr
    scores = Store(run).read_run()["rounds"][1]["stages"]["scores"]
    answers = Store(run).manifest(scores)["input_keys"]["answers"]
    last = pq.read_table(run / "artifacts" / answers / "answers.parquet")["prompt"].to_pylist()[-1][0]["content"]
    failed = with_reward(last.partition(".")[0])
    assert failed.returncode != 0 and "mine.py:2" in failed.stderr, failed.stderr
    made = set(sampled(run))
    mended = with_reward("mended")
    assert mended.returncode == 0, mended.stderr
    assert set(sampled(run)) == made
    assert "same result as before" in mended.stdout
