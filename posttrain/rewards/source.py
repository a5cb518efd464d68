"""Parses a reward's file, without running it: its functions and their parameters."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain import shipped
from posttrain.config import RewardEntry
from posttrain.errors import RewardError, did_you_mean, in_file


def arguments(entry: RewardEntry) -> set[str]:
    """The parameter names of an entry's function. Raises RewardError as `load` does."""
    named = found(entry)[-1].args
    return {argument.arg for argument in [*named.args, *named.kwonlyargs]}


def found(entry: RewardEntry) -> tuple[Path, str, str, ast.FunctionDef]:
    """The file of an entry, its text, the function's name and the function."""
    path = shipped.locate("reward", entry.use)
    with in_file(path):
        text = text_of(path)
        functions = _public_functions(path, text)
        name = entry.function or _only(functions)
        if name not in functions:
            message = f"no function {name!r}{did_you_mean(name, functions)}"
            hint = f"it has {', '.join(functions) or 'none'}"
            raise RewardError(message, hint=hint, rule="reward-no-function")
        return path, text, name, functions[name]


def text_of(path: Path) -> str:
    """The text of a file. Raises RewardError if it is not a text file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise RewardError("cannot be read: not a regular file", file=str(path), rule="reward-unreadable")
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise RewardError("not UTF-8 text", file=str(path), rule="reward-not-utf8") from None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise RewardError(f"cannot be read: {said}", file=str(path), rule="reward-unreadable") from None


def _public_functions(path: Path, text: str) -> dict[str, ast.FunctionDef]:
    if path.suffix != ".py":
        hint = "a reward is a .py file with a function"
        raise RewardError("not a Python file", hint=hint, rule="reward-not-python")
    try:
        tree = ast.parse(text, str(path))
    except SyntaxError as error:
        said, line, column = f"not Python: {error.msg}", error.lineno, error.offset
        raise RewardError(said, line=line, column=column, rule="reward-not-python") from None
    except (ValueError, RecursionError, MemoryError) as error:  # zero bytes; nesting that its parser gives up on
        raise RewardError(f"not Python: {error or 'nested too deep'}", rule="reward-not-python") from None
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}


def _only(functions: Mapping[str, ast.FunctionDef]) -> str:
    if len(functions) == 1:
        return next(iter(functions))
    if not functions:
        hint = "def f(prompts, completions, **columns)"
        raise RewardError("there is no public function", hint=hint, rule="reward-no-function")
    hint = "say which: `function: NAME` in the recipe, or begin the names of the others with _"
    message = f"there are several functions: {', '.join(functions)}"
    raise RewardError(message, hint=hint, rule="reward-several-functions")


def parameters(
    path: Path, function: ast.FunctionDef, given: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The columns that a function requires, and those that it accepts (None: any)."""
    arguments = function.args
    named = [argument.arg for argument in [*arguments.args, *arguments.kwonlyargs]]
    missing = [name for name in given if name not in named]
    if arguments.posonlyargs or (missing and arguments.kwarg is None):
        raise RewardError(
            f"{function.name}() does not take {' and '.join(f'`{name}`' for name in given)} by name",
            file=str(path),
            line=function.lineno,
            hint=f"def {function.name}({', '.join(given)}, **columns) -> list[float | None]",
            rule="reward-arguments",
        )
    optional = [argument.arg for argument in arguments.args[len(arguments.args) - len(arguments.defaults) :]]
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    optional += [argument.arg for argument, default in pairs if default is not None]
    needs = tuple(name for name in named if name not in given and name not in optional)
    return needs, None if arguments.kwarg else tuple(name for name in named if name not in given)


def line_of(file: str, function: str) -> int | None:
    """The line of a function in the file; None where there is none, as in a file that was changed since."""
    try:
        found = _public_functions(Path(file), text_of(Path(file))).get(function)
    except RewardError:
        return None
    return found.lineno if found else None
