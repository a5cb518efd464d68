"""A reward from `reward/NAME.py` or a file of the user's: plain functions with TRL's reward signature.

    def correct(prompts, completions, answer, **columns) -> list[float | None]: ...

`prompts` and `completions` are lists of message lists; each column of the prompt set is a list of the
same length; None means: no opinion on this row. The file is one module by itself: what it imports must
be installed, since only the file's own content decides whether a finished stage is run again.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

from posttrain import content
from posttrain.content import did_you_mean
from posttrain.errors import RewardError, StageError
from posttrain.patience import Overdue, waits
from posttrain.recipe import RewardEntry
from posttrain.records import Message, Prompt

POINTWISE = ("prompts", "completions")  # what a reward function is given beside columns
_PROBES = ("", "0", "I do not know.\n\nAnswer: 42")


class Function(Protocol):
    def __call__(self, **given: list[Any]) -> Sequence[float | None]: ...


@dataclass(frozen=True)
class Reward:
    """One reward function. Picklable: each process imports the file when it first calls it.

    `needs` are the columns the function cannot be called without; `takes` all it takes, None for any.
    """

    name: str
    file: str
    function: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] | None = None
    sha256: str = ""
    seconds: float | None = None  # that one call may take

    def __call__(
        self,
        prompts: Sequence[Sequence[Message]],
        completions: Sequence[Sequence[Message]],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float | None]:
        """One score, or None, for each row. Raises RewardError for an exception, a wrong length, type or NaN."""
        return self.ask({"prompts": prompts, "completions": completions}, columns)

    def ask(
        self, given: Mapping[str, Sequence[Sequence[Message]]], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """The function's answer: one number, or None, for each row of `given` (lists of messages, by argument).

        Raises RewardError for an exception, a wrong length, type or NaN; StageError where it does not return.
        """
        taken = {name: list(values) for name, values in columns.items() if self.takes is None or name in self.takes}
        messages = {name: [list(row) for row in rows] for name, rows in given.items()}
        function = _function(self.file, self.function, self.sha256)
        try:
            with waits(self.seconds):
                scores = function(**messages, **taken)
        except Overdue as late:
            raise self._overdue(late, function, messages, taken) from None
        except Exception as error:
            raise self._raised(error, list(given)) from error
        return self._checked(scores, len(given["prompts"]))

    @property
    def identity(self) -> str:
        """SHA-256 of the file and of which function is meant."""
        return hashlib.sha256(f"{self.sha256} {self.function}".encode()).hexdigest()

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises RewardError when the prompt set lacks a column that the function cannot do without."""
        for name in self.needs:
            if name not in columns:
                raise RewardError(
                    f"{self.function}() needs the column {name!r}{did_you_mean(name, columns)}",
                    file=self.file,
                    hint=f"the prompts have {', '.join(columns) or 'no column beside prompt'}; "
                    "`columns:` in the recipe renames, and a default in the function does without",
                )

    def probe(self, prompts: Sequence[Prompt]) -> None:
        """Calls the function once on a few prompts and made-up answers, so that it fails before any training.

        Raises RewardError.
        """
        few = list(prompts[:4])
        if not few:
            return
        self.check_columns(list(few[0].columns))
        rows = [(prompt, text) for prompt in few for text in _PROBES]
        self(
            [prompt.messages for prompt, _ in rows],
            [[{"role": "assistant", "content": text}] for _, text in rows],
            {name: [prompt.columns[name] for prompt, _ in rows] for name in few[0].columns},
        )

    def _raised(self, error: Exception, given: Sequence[str]) -> RewardError:
        frames = traceback.extract_tb(error.__traceback__)
        mine = [frame for frame in frames if frame.filename == self.file]
        kind, text = type(error).__name__, " ".join(str(error).split())
        return RewardError(
            f"{self.function}() raised {kind}{f': {text}' if text else ''}",
            file=self.file,
            line=mine[-1].lineno if mine else None,
            hint=f"it is called as {self.function}({'=…, '.join(given)}=…, and one list for each column)",
        )

    def _overdue(
        self, late: Overdue, function: Function, messages: Mapping[str, list[Any]], taken: Mapping[str, list[Any]]
    ) -> StageError:
        """Where it was, and which row it hangs on: the first that it does not answer alone in the same time."""
        rows, row = len(messages["prompts"]), None
        try:
            with waits(self.seconds):
                for row in range(rows):
                    alone = {name: values[row : row + 1] for name, values in {**messages, **taken}.items()}
                    with contextlib.suppress(Exception):
                        function(**alone)
                row = None
        except Overdue as again:
            late = again
        mine = [frame for frame in traceback.extract_tb(late.__traceback__) if frame.filename == self.file]
        what = f"{self.file}:{mine[-1].lineno}: " if mine else f"{self.file}: "
        what += f"{self.function}() did not return within {self.seconds:g} s for {rows} rows"
        if row is None:
            return StageError(f"{what}, though it does for each alone; raise compute.reward_minutes, or make it faster")
        text = " ".join(str(messages["prompts"][row][-1]["content"]).split())
        return StageError(
            f"{what}, and hangs on row {row}, the prompt {text[:80]!r}; mend it, or raise compute.reward_minutes"
        )

    def _checked(self, scores: Any, rows: int) -> list[float | None]:
        if isinstance(scores, (str, bytes, Mapping)) or not hasattr(scores, "__len__"):
            raise self._wrong(f"returned {type(scores).__name__}, not a list")
        if len(scores) != rows:
            raise self._wrong(f"returned {len(scores)} scores for {rows} rows")
        return [self._score(index, score) for index, score in enumerate(scores)]

    def _score(self, index: int, score: Any) -> float | None:
        if score is None:
            return None
        try:
            number = math.nan if isinstance(score, (str, bytes)) else float(score)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self._wrong(f"returned {score!r} for row {index}, which is no finite number")
        return number

    def _wrong(self, what: str) -> RewardError:
        hint = "one number for each completion, or None for no opinion"
        return RewardError(f"{self.function}() {what}", file=self.file, line=_line(self.file, self.function), hint=hint)


def load(entry: RewardEntry, given: Sequence[str] = POINTWISE) -> Reward:
    """The reward of a recipe's entry. The file is read, not run. `given`: what its function is called with beside
    columns, by name.

    Raises RewardError when there is no such file or function, or it cannot be parsed.
    """
    path, text, name, function = _found(entry)
    needs, takes = _parameters(path, function, given)
    return Reward(entry.name, str(path), name, needs, takes, hashlib.sha256(text.encode()).hexdigest())


def patient(reward: Reward, minutes: float | None) -> Reward:
    """The reward, one call of which may take so long; None: however long."""
    return replace(reward, seconds=None if minutes is None else 60 * minutes)


def arguments(entry: RewardEntry) -> set[str]:
    """The names of the arguments of an entry's function. Raises RewardError as `load` does."""
    named = _found(entry)[-1].args
    return {argument.arg for argument in [*named.args, *named.kwonlyargs]}


def _found(entry: RewardEntry) -> tuple[Path, str, str, ast.FunctionDef]:
    """The file of an entry, its text, the function's name and the function."""
    path = content.locate("reward", entry.use)
    text = _text(path)
    functions = _public_functions(path, text)
    name = entry.function or _only(path, functions)
    if name not in functions:
        raise RewardError(
            f"no function {name!r}{did_you_mean(name, functions)}",
            file=str(path),
            hint=f"it has {', '.join(functions) or 'none'}",
        )
    return path, text, name, functions[name]


def content_hash(entry: RewardEntry) -> str:
    """SHA-256 of the reward's file and of which function is meant."""
    return load(entry).identity


def wrong_cases(reward: Reward) -> list[str]:
    """Which golden cases of the reward's file (`NAME.cases.jsonl` beside it) do not come out; empty when all do.

    A row: {"function", "prompt": text or messages, "completion": text, "columns": {…}, "expected": number or null}.
    Raises RewardError when a row cannot be read.
    """
    path = Path(reward.file).with_suffix(".cases.jsonl")
    wrong = []
    for line, text in enumerate(_text(path).splitlines() if path.is_file() else [], 1):
        try:
            case = json.loads(text)
            if case.get("function", reward.function) != reward.function:
                continue
            prompt, completion, expected = case["prompt"], case["completion"], case["expected"]
        except (ValueError, KeyError, AttributeError) as error:
            hint = "keys: function, prompt, completion, columns, expected"
            raise RewardError(f"not a golden case: {error}", file=str(path), line=line, hint=hint) from None
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        columns = {name: [value] for name, value in case.get("columns", {}).items()}
        (score,) = reward([messages], [[{"role": "assistant", "content": completion}]], columns)
        same = score == expected if score is None or expected is None else math.isclose(score, expected, abs_tol=1e-9)
        if not same:
            wrong.append(f"{path}:{line}: {reward.function}() gave {score}, expected {expected}")
    return wrong


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise RewardError("not UTF-8 text", file=str(path)) from None
    except OSError as error:
        raise RewardError(f"cannot be read: {error.strerror}", file=str(path)) from None


def _public_functions(path: Path, text: str) -> dict[str, ast.FunctionDef]:
    if path.suffix != ".py":
        raise RewardError("not a Python file", file=str(path), hint="a reward is a .py file with a function")
    try:
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        raise RewardError(f"not Python: {error.msg}", file=str(path), line=error.lineno, column=error.offset) from None
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}


def _only(path: Path, functions: Mapping[str, ast.FunctionDef]) -> str:
    if len(functions) == 1:
        return next(iter(functions))
    if not functions:
        raise RewardError("there is no public function", file=str(path), hint="def f(prompts, completions, **columns)")
    raise RewardError(
        f"there are several functions: {', '.join(functions)}",
        file=str(path),
        hint="say which: `function: NAME` in the recipe, or begin the names of the others with _",
    )


def _parameters(
    path: Path, function: ast.FunctionDef, given: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The columns that a function needs, and those that it takes (None: any)."""
    arguments = function.args
    named = [argument.arg for argument in [*arguments.args, *arguments.kwonlyargs]]
    missing = [name for name in given if name not in named]
    if arguments.posonlyargs or (missing and arguments.kwarg is None):
        raise RewardError(
            f"{function.name}() does not take {' and '.join(f'`{name}`' for name in given)} by name",
            file=str(path),
            line=function.lineno,
            hint=f"def {function.name}({', '.join(given)}, **columns) -> list[float | None]",
        )
    optional = [argument.arg for argument in arguments.args[len(arguments.args) - len(arguments.defaults) :]]
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    optional += [argument.arg for argument, default in pairs if default is not None]
    needs = tuple(name for name in named if name not in given and name not in optional)
    return needs, None if arguments.kwarg else tuple(name for name in named if name not in given)


def _line(file: str, function: str) -> int | None:
    found = _public_functions(Path(file), _text(Path(file))).get(function)
    return found.lineno if found else None


@lru_cache(maxsize=64)
def _function(file: str, name: str, sha256: str) -> Function:
    """The function itself. Imported once a process and content, under a name no installed module has."""
    module_name = f"_posttrain_reward_{hashlib.sha256(f'{file} {sha256}'.encode()).hexdigest()[:16]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise _import_error(file, error) from error
    return cast(Function, getattr(sys.modules[module_name], name))


def _import_error(file: str, error: Exception) -> RewardError:
    mine = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    missing = isinstance(error, ModuleNotFoundError)
    return RewardError(
        f"importing the file raised {type(error).__name__}: {error}",
        file=file,
        line=mine[-1].lineno if mine else None,
        hint="a reward is one file; install what it imports, or put it into the file" if missing else None,
    )
