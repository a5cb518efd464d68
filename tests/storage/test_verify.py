"""Damage: found by `verify` and by the next round, repaired by doing again what is needed; never used in silence."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.loop_runs import AGAIN, EVALUATED, ROUND, FakeLauncher, go

from posttrain.errors import DamagedError
from posttrain.models import check_snapshot
from posttrain.storage import store, verify
from posttrain.storage.store import Store


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = [empty, cut, flip, Path.unlink]


def found(root: Path) -> list[tuple[str, str]]:
    return [(each["kind"], each["path"]) for each in verify.inspect(Store(root))["findings"]]


def repaired(root: Path) -> dict:
    with Store(root).session():
        said = verify.inspect(Store(root))
        verify.repair(Store(root), said["findings"])
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    go(root, 2)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A run of two rounds to do harm to."""
    return Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))


def test_a_run_is_whole(whole: Path) -> None:
    said = verify.inspect(Store(whole))
    assert said["findings"] == said["runs_again"] == []
    assert said["artifacts"] == 3 + len(EVALUATED) + 2 * len(ROUND)
    assert said["files"] == 2 * said["artifacts"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["payload", "artifact.json"])
def test_a_damaged_artifact_is_done_again_alone(root: Path, name: str, damage: Callable[[Path], None]) -> None:
    key = (root / "round-1" / "sft").resolve().name
    damage(root / "artifacts" / key / name)
    said = repaired(root)
    assert [(each["kind"], each["path"]) for each in said["findings"]] == [("artifact", f"artifacts/{key}")]
    assert said["runs_again"] == [{"round": 1, "stage": "sft", "key": key}]
    assert verify.inspect(Store(root))["runs_again"] == said["runs_again"] and found(root) == []
    assert go(root, 2)[0] == ["sft"]
    assert found(root) == []
    assert not (root / store.ASIDE).exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_of_every_artifact_is_seen(root: Path, damage: Callable[[Path], None]) -> None:
    files = [path for path in sorted((root / "artifacts").rglob("*")) if path.is_file()]
    for path in files:
        content = path.read_bytes()
        damage(path)
        assert found(root) == [("artifact", f"artifacts/{path.parent.name}")], path
        path.write_bytes(content)
    assert found(root) == []


def test_the_next_round_stops_at_an_input_that_changed_and_reads_no_other(root: Path) -> None:
    flip(root / "round-2" / "dpo" / "payload")
    flip(root / "round-1" / "filtered" / "payload")  # nothing that is to be done reads it
    with pytest.raises(DamagedError, match=r"dpo-.*payload.*posttrain verify .* --repair"):
        go(root, 3)
    repaired(root)
    assert go(root, 3)[0] == ["filters", "dpo", *ROUND]


def test_what_follows_is_done_again_if_the_stage_comes_out_otherwise(root: Path) -> None:
    key = (root / "round-1" / "sft").resolve().name
    flip(root / "artifacts" / key / "payload")
    repaired(root)

    class Otherwise(FakeLauncher):
        def run(self, folder: Path) -> None:
            (folder / "out" / "more").write_text("from another machine")
            super().run(folder)

    with pytest.raises(DamagedError, match="is not what it was before"):
        go(root, 2, launcher=Otherwise())
    again = ["answers_pairs", "pairs", "dpo", *EVALUATED, "promote", *AGAIN]
    assert go(root, 2)[0] == again
    assert found(root) == []
    assert go(root, 2)[0] == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_run_json_is_written_anew_and_nothing_is_done_again(root: Path, damage: Callable[[Path], None]) -> None:
    before = (root / "run.json").read_bytes()
    damage(root / "run.json")
    if (root / "run.json").exists():
        with pytest.raises(DamagedError, match=r"run\.json"):
            go(root, 2)
        repaired(root)
    assert go(root, 2)[0] == []
    assert (root / "run.json").read_bytes() == before


def test_an_older_run_without_hashes_of_its_own_is_taken(root: Path) -> None:
    for path in [root / "run.json", *(root / "artifacts").glob("*/artifact.json")]:
        content = json.loads(path.read_text())
        del content["sha256"]
        path.write_text(json.dumps(content))
    assert found(root) == []
    path = (root / "round-1" / "sft").resolve() / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shb256": "one flipped bit makes it another key"}))
    assert found(root) == [("artifact", f"artifacts/{path.parent.name}")]


def test_strays_links_and_leftovers_are_found_and_put_right(root: Path) -> None:
    dpo = (root / "round-2" / "dpo").resolve()
    (dpo / "model.safetensors.index.json").write_text("{}")  # whoever loads the model would read it
    (root / "artifacts" / "notes.txt").write_text("mine")
    (root / "round-1" / "sft").unlink()
    (root / "round-1" / "sft").symlink_to("../artifacts/nowhere")
    (root / "work" / dpo.name / "scratch").mkdir(parents=True)
    assert sorted(found(root)) == [
        ("leftover", f"work/{dpo.name}"),
        ("link", "round-1/sft"),
        ("stray", f"artifacts/{dpo.name}/model.safetensors.index.json"),
        ("stray", "artifacts/notes.txt"),
    ]
    with pytest.raises(DamagedError, match="index"):
        go(root, 3)
    repaired(root)
    assert found(root) == []
    assert (root / store.ASIDE / "artifacts" / "notes.txt").read_text() == "mine"
    assert go(root, 2)[0] == []


def test_what_another_recipe_began_is_a_leftover_and_what_this_one_did_is_not(root: Path) -> None:
    def dies(stage: str) -> None:
        if stage == "dpo":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(root, 2, "dpo.learning_rate=3e-4", launcher=FakeLauncher(fails=dies))
    begun = next((root / "work").iterdir()).name
    assert found(root) == []  # the same command goes on from there
    go(root, 3)
    assert found(root) == [("leftover", f"work/{begun}")]
    repaired(root)
    assert list((root / "work").iterdir()) == []


def test_a_kill_right_after_publishing_leaves_nothing(root: Path) -> None:
    key = (root / "round-1" / "sft").resolve().name
    (root / "work" / key).mkdir()
    assert go(root, 2)[0] == []
    assert list((root / "work").iterdir()) == []


@pytest.mark.parametrize("damaged", [None, "config.json", "model.safetensors"])
def test_a_model_from_the_hub_is_looked_at_by_the_names_of_its_blobs(tmp_path: Path, damaged: str | None) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    small, large = b"{}", b"weights"
    names = {
        "config.json": (hashlib.sha1(b"blob 2\0" + small).hexdigest(), small),
        "model.safetensors": (hashlib.sha256(large).hexdigest(), large),
    }
    for name, (blob, content) in names.items():
        (blobs / blob).write_bytes(content if name != damaged else content + b" ")
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    if damaged is None:
        check_snapshot(snapshot)
        return
    with pytest.raises(DamagedError, match=damaged):
        check_snapshot(snapshot)
