"""What a stage that samples, scores or filters resumes from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import MissingShardsError
from posttrain.rewards.scoring import _rows, slices
from posttrain.storage import shards
from posttrain.storage.part import Part
from posttrain.storage.pieces import Pieces, by_work, even
from posttrain.storage.shards import run_shards


class Doubling:
    """Stands in for a stage's work; says of each shard that it was done, in a file, since workers are forked."""

    def __init__(self, journal: Path, dies_at: int | None = None) -> None:
        self.journal, self.dies_at = journal, dies_at

    def __call__(self, shard: list[int]) -> pa.Table:
        if shard[0] == self.dies_at:
            raise RuntimeError("killed")
        with self.journal.open("a") as file:
            file.write(f"{shard[0]}\n")
        return pa.table({"x": [2 * value for value in shard]})


SHARDS = [[1, 2], [3, 4], [5, 6], [7, 8]]


def values(paths: list[Path]) -> list[int]:
    return [value for path in paths for value in pq.read_table(path)["x"].to_pylist()]


@pytest.mark.parametrize("workers", [1, 3])
def test_after_a_stop_only_what_was_not_finished_is_done(tmp_path: Path, workers: int) -> None:
    journal, folder = tmp_path / "journal", tmp_path / "shards"
    with pytest.raises(RuntimeError):
        run_shards(Doubling(journal, dies_at=7), SHARDS, folder, workers)
    first = journal.read_text().split()
    counted: list[int] = []
    paths = run_shards(Doubling(journal), SHARDS, folder, workers, counted.append)
    assert values(paths) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert sorted(journal.read_text().split()[len(first) :]) == sorted({"1", "3", "5", "7"} - set(first))
    assert sum(counted) == 8


@pytest.mark.parametrize(("there", "count"), [([], 8), (["0"], 1), (["3", "5"], 2)])
def test_each_gpu_is_used_by_one_process_and_without_any_each_core(
    there: list[str], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the GPUs: none is needed to know what would be done there."""
    monkeypatch.setattr(shards, "gpus", lambda: there)
    assert shards.processes(8) == count


def where(shard: int) -> pa.Table:
    """Says on which GPU, and waits until the other process has a shard, too."""
    time.sleep(0.2)
    return pa.table({"x": [shard], "gpu": [os.environ.get("CUDA_VISIBLE_DEVICES")]})


def test_each_process_sees_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "gpus", lambda: ["3", "5"])
    paths = run_shards(where, [1, 2, 3, 4], tmp_path, shards.processes(8))
    assert values(paths) == [1, 2, 3, 4]
    assert {gpu for path in paths for gpu in pq.read_table(path)["gpu"].to_pylist()} == {"3", "5"}


def test_several_processes_make_a_part_each_and_the_last_one_reads_all(tmp_path: Path) -> None:
    journal, folder = tmp_path / "journal", tmp_path / "shards"
    with pytest.raises(MissingShardsError, match="4 of 4 shards") as nothing:
        run_shards(Doubling(journal), SHARDS, folder, 1, part=Part())
    assert nothing.value.count == 4 and not journal.exists()
    with pytest.raises(MissingShardsError, match="2 of 4 shards"):
        run_shards(Doubling(journal), SHARDS, folder, 1, part=Part(1, 2))
    assert values(run_shards(Doubling(journal), SHARDS, folder, 1, part=Part(0, 2))) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert journal.read_text().split() == ["3", "7", "1", "5"]
    assert len(run_shards(Doubling(journal), SHARDS, folder, 1, part=Part())) == 4


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8] ^= 1  # in the first page: the footer, which Parquet readers check, stays
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [empty, cut, flip, Path.unlink])
def test_a_shard_that_was_damaged_is_done_again_and_no_other(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    journal, folder = tmp_path / "journal", tmp_path / "shards"
    paths = run_shards(Doubling(journal), SHARDS, folder, 1)
    damage(paths[2])
    assert values(run_shards(Doubling(journal), SHARDS, folder, 1)) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert journal.read_text().split() == ["1", "3", "5", "7", "5"]


def test_a_piece_that_was_being_written_is_none(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path)
    (tmp_path / ".first.part").write_bytes(b"half of it")
    assert pieces.find("first") is None
    kept = pieces.keep("first", pa.table({"x": [1]}))
    assert pieces.find("first") == kept
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


@pytest.mark.parametrize(("count", "most", "size"), [(0, 256, 256), (1, 256, 1), (256, 256, 256), (257, 256, 129)])
def test_pieces_are_even(count: int, most: int, size: int) -> None:
    assert even(count, most) == size


@pytest.mark.parametrize("count", [1, 2048, 2049, 7200, 9000])
def test_slices_are_even_and_no_prompt_is_in_two(tmp_path: Path, count: int) -> None:
    ids = [str(row // 8) for row in range(count)]
    pq.write_table(pa.table({"prompt_id": ids}), tmp_path / "samples.parquet")
    found = slices(tmp_path / "samples.parquet")
    assert [row for start, stop in found for row in range(start, stop)] == list(range(count))
    assert all(ids[stop - 1] != ids[stop] for _, stop in found[:-1])
    sizes = [stop - start for start, stop in found]
    assert max(sizes) < 2048 + 8 and max(sizes) - min(sizes) <= 8 * len(sizes)


def test_a_slice_is_read_from_the_row_groups_that_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    pq.write_table(
        pa.table({"prompt_id": [f"{at // 3}" for at in range(100)], "x": range(100)}), path, row_group_size=7
    )
    for start, stop in [(0, 100), (0, 7), (3, 9), (7, 14), (20, 21), (95, 100)]:
        assert _rows(path, start, stop)["x"].to_pylist() == list(range(start, stop))
    assert [stop - start for start, stop in slices(path)] == [
        51,
        49,
    ]  # few rows: even, of 64 at most, to a prompt's end


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_work_is_cut_evenly_and_within_the_bound(work: list[int], most: int) -> None:
    parts = by_work(work, most)
    assert [one for part in parts for one in work[part]] == work
    assert all(sum(work[part]) <= most or part.stop - part.start == 1 for part in parts)
    filled, taken = 1, 0  # one after the other: no plan of consecutive rows needs fewer
    for one in work:
        filled, taken = (filled + 1, one) if taken and taken + one > most else (filled, taken + one)
    assert len(parts) == (filled if work else 0)
