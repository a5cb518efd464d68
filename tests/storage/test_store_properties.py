"""What holds of the store for any files, values and moments: nothing partial is published, no change goes unseen."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.errors import DamagedError
from posttrain.storage import files, store
from posttrain.storage.files import canonical_json, read_sealed, sealed, write_durably
from posttrain.storage.store import Store

_NAME = st.text("abcxyz01é _-", min_size=1, max_size=6).filter(lambda name: name.strip() == name)
_FOLDERS = st.lists(_NAME.map(lambda name: f"d{name}"), max_size=2)
_PATH = st.tuples(_FOLDERS, _NAME).map(lambda parts: "/".join([*parts[0], parts[1]]))
_TREE = st.dictionaries(_PATH, st.binary(max_size=40), min_size=1, max_size=4)
_NUMBER = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBER | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_OBJECT = st.dictionaries(st.text(max_size=5).filter(lambda name: name != "sha256"), _JSON, max_size=4)
MANIFEST = {"stage": "x", "key": "x-1", "input_keys": {}, "outside": {}, "config": {}, "seconds": 1.0, "metrics": {}}


def begun(root: Path, tree: dict[str, bytes]) -> Path:
    run = Store(root)
    run.artifacts.mkdir(parents=True)
    run.work.mkdir()
    folder = run.begin("x-1", {"stage": "x"})
    for name, content in tree.items():
        path = folder / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@given(tree=_TREE, data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_published_is_what_was_written_and_a_change_is_seen(
    tree: dict[str, bytes], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as root:
        made = store.publish(begun(Path(root), tree), Path(root) / "artifacts", MANIFEST)
        assert {name: path.read_bytes() for name, path in store.payload(made).items()} == tree
        assert store.damaged_files(made) == []
        name = data.draw(st.sampled_from(sorted(tree)))
        content = data.draw(st.binary(max_size=40).filter(lambda other: other != tree[name]))
        (made / name).write_bytes(content)
        assert store.damaged_files(made) == [name]
        (made / name).unlink()
        assert store.damaged_files(made) == [name] == Store(Path(root)).incomplete("x-1")


class Cut(BaseException):
    """The machine goes down."""


@given(tree=_TREE, survives=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_a_stop_before_any_call_of_the_system_leaves_all_or_nothing(tree: dict[str, bytes], survives: int) -> None:
    """`survives` calls that bring something to the disk are made, and the next is not."""
    left = survives
    fsync, rename = files.fsync, Path.rename

    def counted(call: Any) -> Any:
        def made(*arguments: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Cut
            left -= 1
            return call(*arguments)

        return made

    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        folder = begun(Path(root), tree)
        patch.setattr(store, "fsync", counted(fsync))
        patch.setattr(files, "fsync", counted(fsync))
        patch.setattr(Path, "rename", counted(rename))
        with contextlib.suppress(Cut):
            store.publish(folder, Path(root) / "artifacts", MANIFEST)
        patch.undo()
        run = Store(Path(root))
        assert not run.has("x-1") or store.damaged_files(run.path("x-1")) == []
        if not run.has("x-1"):
            assert folder.exists()  # and the same command goes on from there


@given(value=_OBJECT, at=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_a_sealed_object_comes_back_or_is_known_to_be_damaged(value: dict[str, Any], at: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "run.json"
        write_durably(path, sealed(value))
        assert read_sealed(path, ()) == value
        content = bytearray(path.read_bytes())
        content[at % len(content)] ^= 1 << bit
        path.write_bytes(content)
        with contextlib.suppress(DamagedError):
            assert read_sealed(path, ()) == value  # a blank between two values says nothing


@given(config=_OBJECT, other=_OBJECT)
@settings(max_examples=200, deadline=None)
def test_keys_are_of_what_is_said_and_not_of_its_order(config: dict[str, Any], other: dict[str, Any]) -> None:
    def key(of: dict[str, Any]) -> str:
        return store.artifact_key("sft", 1, of, {}, {})

    assert key(dict(reversed(config.items()))) == key(config)
    assert (key(other) == key(config)) == (canonical_json(other) == canonical_json(config))
