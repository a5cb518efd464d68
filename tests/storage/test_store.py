"""The run folder: keys, publishing, the lock."""

import json
from pathlib import Path

import pytest

from posttrain.errors import DamagedError
from posttrain.storage import store
from posttrain.storage.files import write_durably
from posttrain.storage.store import Store


def publish(run: Store, key: str, files: dict[str, str]) -> Path:
    folder = run.begin(key, {"stage": "sft"})
    for name, text in files.items():
        path = folder / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return store.publish(folder, run.artifacts, {"stage": "sft", "metrics": {"loss": 1.0}})


@pytest.fixture
def run(tmp_path: Path) -> Store:
    run = Store(tmp_path)
    with run.session():
        pass
    return run


def test_the_key_depends_on_all_that_decides_and_not_on_the_order_of_keys() -> None:
    key = store.artifact_key("sft", 1, {"a": 1, "b": [1, 2]}, {"model": "base-1"}, {"reward.py": "ff"})
    assert key == store.artifact_key("sft", 1, {"b": [1, 2], "a": 1}, {"model": "base-1"}, {"reward.py": "ff"})
    others = [
        store.artifact_key("dpo", 1, {"a": 1, "b": [1, 2]}, {"model": "base-1"}, {"reward.py": "ff"}),
        store.artifact_key("sft", 2, {"a": 1, "b": [1, 2]}, {"model": "base-1"}, {"reward.py": "ff"}),
        store.artifact_key("sft", 1, {"a": 2, "b": [1, 2]}, {"model": "base-1"}, {"reward.py": "ff"}),
        store.artifact_key("sft", 1, {"a": 1, "b": [1, 2]}, {"model": "base-2"}, {"reward.py": "ff"}),
        store.artifact_key("sft", 1, {"a": 1, "b": [1, 2]}, {"model": "base-1"}, {"reward.py": "fe"}),
    ]
    assert len({key, *others}) == 6


def test_publishing_moves_the_payload_whole_and_describes_each_file(run: Store) -> None:
    target = publish(run, "sft-1", {"model.safetensors": "weights", "deep/er.txt": "x"})
    manifest = run.manifest("sft-1")
    assert manifest["metrics"] == {"loss": 1.0}
    assert set(manifest["files"]) == {"model.safetensors", "deep/er.txt"}
    assert manifest["files"]["model.safetensors"]["size"] == 7
    assert store.damaged_files(target) == []
    assert list(run.work.iterdir()) == []


def test_what_is_under_way_is_no_artifact(run: Store) -> None:
    folder = run.begin("sft-1", {"stage": "sft"})
    (folder / "out" / "half").write_text("x")
    assert not run.has("sft-1")


def test_beginning_again_keeps_scratch_and_empties_out(run: Store) -> None:
    folder = run.begin("sft-1", {"stage": "sft"})
    (folder / "out" / "half").write_text("x")
    (folder / "scratch" / "checkpoint").write_text("x")
    folder = run.begin("sft-1", {"stage": "sft"})
    assert list((folder / "out").iterdir()) == []
    assert (folder / "scratch" / "checkpoint").exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_file_is_named(run: Store, damage: str) -> None:
    target = publish(run, "sft-1", {"model.safetensors": "weights"})
    file = target / "model.safetensors"
    if damage == "truncate":
        file.write_text("weight")
    elif damage == "flip":
        file.write_text("weighty")
    elif damage == "remove":
        file.unlink()
    else:
        (target / "artifact.json").write_text("{")
    expected = ["artifact.json"] if damage == "manifest" else ["model.safetensors"]
    assert store.damaged_files(target) == expected


def test_an_unreadable_run_file_says_which(run: Store) -> None:
    (run.root / "run.json").write_text("{")
    with pytest.raises(DamagedError, match=r"run\.json"):
        run.read_run()


def test_links_are_relative_and_replaced(run: Store) -> None:
    publish(run, "sft-1", {"a": "1"})
    publish(run, "sft-2", {"a": "2"})
    run.link("round-1/sft", run.path("sft-1"))
    run.link("round-1/sft", run.path("sft-2"))
    link = run.root / "round-1" / "sft"
    assert (link / "a").read_text() == "2"
    assert not link.readlink().is_absolute()


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_durably(path, "old")
    write_durably(path, json.dumps({"new": 1}))
    assert json.loads(path.read_text()) == {"new": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]
