"""Plans a push: repositories, rounds, files. Needs no network and no token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

from posttrain.config.push import problem
from posttrain.errors import DamagedError, InputError
from posttrain.hub.data_card import TABLES, data_card
from posttrain.hub.model_card import model_card
from posttrain.hub.run_summary import RunSummary, summarize
from posttrain.report.reading import Round, RunView, open_run
from posttrain.storage import store
from posttrain.storage.files import file_hash, tree_hash
from posttrain.storage.redact import secrets_here
from posttrain.storage.store import Store

Kind = Literal["model", "dataset"]
CARD = "README.md"
# A model folder's own files. Anything else that lies in one (optimizer, trainer state, pickles) never goes.
_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "*.jinja")
_MODEL_FILES += ("special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken")
_FOLDERS = ("adapter", "additional_chat_templates")


@dataclass(frozen=True)
class File:
    """A file of a repository: `source` on this machine, or `text` if it is generated."""

    path: str
    size: int
    sha256: str
    source: Path | None = None
    text: str = ""


@dataclass(frozen=True)
class RoundPlan:
    """The content of a repository as of a round; `key`: of the artifact."""

    number: int
    key: str
    files: tuple[File, ...]

    @property
    def tag(self) -> str:
        return f"round-{self.number}"

    @property
    def card(self) -> str:
        return next(file.text for file in self.files if file.path == CARD)


@dataclass(frozen=True)
class RepoPlan:
    """A repository and the rounds to push to it, in order."""

    repo: str
    kind: Kind
    private: bool
    rounds: tuple[RoundPlan, ...]


def make(run: Store, to: str, *, private: bool, data: bool, numbers: Sequence[int] | None) -> list[RepoPlan]:
    """The repositories of a push. `numbers`: rounds, ascending; None: the last promoted one.

    Every file is read and compared with its manifest.

    Raises:
        InputError: the name is not allowed, there is no run, or a round does not exist or was not promoted.
        DamagedError: a file is missing or does not match its manifest.
    """
    wrong = problem(to)
    if wrong:
        raise InputError(
            f"the repository's name {to!r} {wrong}", hint="for example: --to my-name/my-model", rule="hub-name"
        )
    view, checked, secrets = open_run(run.root), _Checked(run), secrets_here()
    chosen = [_promoted(view, number) for number in numbers] if numbers is not None else [_last(view)]
    summaries = [summarize(run, view, one.number, secrets) for one in chosen]
    models = [_model(checked, to, one, summary, data) for one, summary in zip(chosen, summaries, strict=True)]
    plans = [RepoPlan(to, "model", private, tuple(models))]
    if data:
        tables = [_tables(checked, to, view, summary) for summary in summaries]
        plans.append(RepoPlan(data_repo(to), "dataset", private, tuple(one for one in tables if one)))
    return plans


def data_repo(to: str) -> str:
    """The data set repository for the model repository `to`."""
    return f"{to}-data"


def promoted_rounds(run: Store) -> list[int]:
    """Rounds whose policy was promoted, ascending, without round 0, the base."""
    return [entry["round"] for entry in run.read_run().get("rounds", []) if entry["round"] and entry.get("promoted")]


def policy_key(policy: str) -> str:
    """The key of a round's policy, whose folder this is; for the base `base`."""
    path = Path(policy)
    return "base" if path.is_absolute() else path.name


def _last(view: RunView) -> Round:
    done = [one for one in view.rounds if one.number and one.promoted is not None]
    promoted = [one for one in done if one.promoted]
    if promoted:
        return promoted[-1]
    raise InputError(
        f"none of its {len(done)} finished rounds was promoted, so the policy is still the base model",
        file=str(view.root),
        hint="more rounds: posttrain round --n N; the base itself goes only where --round 0 says so",
        rule="hub-nothing-promoted",
    )


def _promoted(view: RunView, number: int) -> Round:
    promoted = [str(one.number) for one in view.rounds if one.number and one.promoted]
    there = f"promoted: {', '.join(promoted) or 'none'}; 0 is the base"
    found = next((one for one in view.rounds if one.number == number), None)
    if found is None:
        raise InputError(f"there is no round {number}", hint=there, rule="hub-no-round")
    if not found.promoted:
        state = "is not finished" if found.promoted is None else "was not promoted"
        raise InputError(f"round {number} {state}", hint=there, rule="hub-no-round")
    return found


class _Checked:
    """Artifacts whose files were verified against their manifests, each once per plan."""

    def __init__(self, run: Store) -> None:
        self.run = run
        self._found: dict[str, list[File]] = {}

    def files(self, key: str) -> list[File]:
        """The files of an artifact. Raises DamagedError if one is missing or differs."""
        if key not in self._found:
            folder = self.run.path(key)
            damaged = store.damaged_files(folder)
            if damaged:
                raise DamagedError(
                    f"{folder}: {', '.join(damaged)} is gone or not what its manifest says; nothing was pushed. "
                    "Remove this folder and run posttrain round again: the stage then runs again"
                )
            files = self.run.manifest(key)["files"]
            self._found[key] = [File(name, one["size"], one["sha256"], folder / name) for name, one in files.items()]
        return self._found[key]


def _model(checked: _Checked, to: str, of: Round, summary: RunSummary, data: bool) -> RoundPlan:
    assert of.policy is not None  # it is promoted
    folder = checked.run.root / of.policy  # an absolute path (the base model's) stays itself
    key = policy_key(of.policy)
    if of.number and key == "base":
        raise InputError(
            f"round {of.number} trained no policy: it is the base model",
            hint="push it by --round 0",
            rule="hub-base-model",
        )
    files = checked.files(key) if key != "base" else _base(folder, summary.base_key)
    kept = tuple(file for file in files if _is_model_file(file.path))
    if not any(file.path == "config.json" for file in kept):
        raise InputError(
            "the policy is no model folder: it holds no config.json", file=str(folder), rule="hub-no-policy"
        )
    card = model_card(summary, to, data_repo(to) if data else None, adapter=any("adapter/" in f.path for f in kept))
    return RoundPlan(of.number, key, (*kept, _made(CARD, card)))


def _tables(checked: _Checked, to: str, view: RunView, summary: RunSummary) -> RoundPlan | None:
    """The tables of all rounds up to this one, since later rounds use data of earlier ones; None if there are none."""
    files = []
    for earlier in view.rounds[: summary.number + 1]:
        for table in TABLES:
            key = earlier.keys.get(table.stage)
            found = checked.files(key) if key else []
            path = table.path(earlier.number)
            files += [File(path, f.size, f.sha256, f.source) for f in found if f.path == table.file]
    if not files:
        return None
    card = data_card(summary, data_repo(to), to, [file.path for file in files])
    key = policy_key(view.rounds[summary.number].policy or "")
    return RoundPlan(summary.number, key, (*files, _made(CARD, card)))


def _is_model_file(path: str) -> bool:
    *folders, name = PurePosixPath(path).parts
    return (not folders or folders[0] in _FOLDERS) and any(fnmatch(name, pattern) for pattern in _MODEL_FILES)


def _base(folder: Path, key: str | None) -> list[File]:
    """The files of the base model, which is outside the run and must still be the one that the run started from."""
    if not (folder / "config.json").is_file():
        raise InputError("the base model is not there any more", file=str(folder), rule="hub-no-policy")
    if key and tree_hash(folder)[:16] != key.removeprefix("base-") and "snapshots" not in folder.parts:
        raise DamagedError(f"{folder}: the base model is not the one that the run started from; nothing was pushed")
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [File(path.relative_to(folder).as_posix(), path.stat().st_size, file_hash(path), path) for path in found]


def _made(path: str, text: str) -> File:
    content = text.encode()
    return File(path, len(content), hashlib.sha256(content).hexdigest(), text=text)
