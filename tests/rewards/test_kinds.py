"""A kind of reward is a class and its line in KINDS: nothing else asks which kind a reward is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.loop_runs import go

from posttrain import rewards
from posttrain.config import RewardEntry
from posttrain.data import tables
from posttrain.data.messages import Message, Prompt
from posttrain.errors import RewardError
from posttrain.job import Job
from posttrain.planning.check import golden_cases
from posttrain.recipe.load import load
from posttrain.rewards import RewardFunction, kinds
from posttrain.rewards.protocol import DEFAULT
from posttrain.stages import prompts, scores
from posttrain.storage.files import file_hash

BASE = Path(__file__).parents[2] / "data" / "tiny-base"


@dataclass(frozen=True)
class WordList:
    """1 for an answer with a word of the file, else 0."""

    reads_columns: ClassVar[bool] = False

    name: str
    words: tuple[str, ...]
    identity: str

    def check_columns(self, columns: Sequence[str]) -> None:
        pass

    def probe(self, prompts: Sequence[Prompt]) -> None:
        if not self.words:
            raise RewardError("there is no word", rule="reward-word-list")

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        completions: Sequence[Sequence[Message]],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float | None]:
        return [float(any(word in answer[-1]["content"] for word in self.words)) for answer in completions]

    def golden_cases(self) -> str:
        return f"{self.name} has {len(self.words)} words"


def load_words(entry: RewardEntry, runtime: rewards.Runtime = DEFAULT) -> RewardFunction:
    return WordList(entry.name, tuple(Path(entry.use).read_text().split()), file_hash(Path(entry.use)))


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(kinds.KINDS, ".txt", load_words)
    path = tmp_path / "words.txt"
    path.write_text("two five")
    return path


def test_it_is_checked_and_its_content_is_in_the_key_of_what_it_scores(tmp_path: Path, words: Path) -> None:
    reward = "reward=" + json.dumps([{"use": str(words)}, {"use": "reward-model"}])
    assert golden_cases(load("quickstart", [reward])) == "words has 2 words, notes.py gives 20 golden cases"
    assert "scores" in go(tmp_path / "run", 1, reward, "watch={}")[0]
    words.write_text("two six")
    ran, said = go(tmp_path / "run", 1, reward, "watch={}")
    assert "scores" in ran and "answers_samples" not in ran
    assert "the content of words.txt changed" in " ".join(said)


def test_it_is_probed_before_anything_is_sampled(tmp_path: Path, words: Path) -> None:
    for name in ("train", "dev", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": f"{name}?"}) + "\n")
    sets = {name: {"path": str(tmp_path / f"{name}.jsonl")} for name in ("train", "dev", "heldout")}
    (tmp_path / "out").mkdir()
    runtime = {"prompts": sets, "rewards": [{"use": str(words)}], "judges": [{"use": str(words)}]}
    job = Job({"max_new_tokens": 8}, {"model": BASE}, tmp_path / "out", tmp_path / "scratch", 0, runtime)
    assert prompts.run(job)["train"]["prompts"] == 1
    words.write_text("")
    with pytest.raises(RewardError, match="there is no word"):
        prompts.run(job)


def test_it_scores(tmp_path: Path, words: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "out").mkdir()
    row = {"prompt_id": "p", "prompt": [{"role": "user", "content": "How many?"}], "n_tokens": 1, "finish": "stop"}
    rows = [
        {**row, "sample_index": index, "completion": [{"role": "assistant", "content": text}], "columns": "{}"}
        for index, text in enumerate(["two", "three"])
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=tables.ANSWERS), tmp_path / "samples" / "answers.parquet")
    entry = RewardEntry(use=str(words)).model_dump(mode="json", by_alias=True)
    inputs = {"answers": tmp_path / "samples"}
    scores.run(Job({"rewards": [entry]}, inputs, tmp_path / "out", tmp_path / "scratch", 0))
    assert pq.read_table(tmp_path / "out" / "scored.parquet")["score"].to_pylist() == [1.0, 0.0]
