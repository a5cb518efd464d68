"""Translates errors of a chat template: its file and line, and what to do."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError

from posttrain.errors import DataError, InputError, ModelError

_OURS = "<template>"  # how jinja calls the file of a template that has none
_NAME_IT = "mend it, or name another template in the recipe: model.chat_template: FILE"


def explained(error: Exception, tokenizer: Any) -> InputError | None:
    """A DataError where the template refused the messages on purpose, a ModelError where it is at fault itself; None
    where the error does not come from the template."""
    file, line = _file(tokenizer), _line(error.__traceback__)
    if isinstance(error, TemplateSyntaxError):
        return ModelError(
            f"the chat template cannot be read: {error.message}",
            file=file,
            line=error.lineno,
            hint=_NAME_IT,
            rule="template-syntax",
        )
    if isinstance(error, SyntaxError) or (isinstance(error, RecursionError) and line is None):
        return ModelError("the chat template is nested too deep", file=file, hint=_NAME_IT, rule="template-nesting")
    if isinstance(error, SecurityError):
        return ModelError(
            f"the chat template does what templates may not: {error.message}",
            file=file,
            line=line,
            hint=_NAME_IT,
            rule="template-forbidden",
        )
    if isinstance(error, UndefinedError):
        return ModelError(
            f"the chat template uses what is not there: {error.message}",
            file=file,
            line=line,
            hint="guard it with `is defined`, or name another template: model.chat_template: FILE",
            rule="template-undefined",
        )
    if type(error) is TemplateError:  # what raise_exception raises
        return DataError(
            f"the chat template refuses these messages: {error}",
            hint="change the messages as it says, or name another template: model.chat_template: FILE",
            rule="template-refuses",
        )
    if line is None and not isinstance(error, TemplateError):
        return None
    return _while_running(error, file, line)


def _while_running(error: Exception, file: str | None, line: int | None) -> ModelError:
    if isinstance(error, RecursionError):
        return ModelError(
            "the chat template calls itself without end", file=file, line=line, hint=_NAME_IT, rule="template-recursion"
        )
    if isinstance(error, ArithmeticError):
        return ModelError(
            f"the chat template computes what has no value: {error}",
            file=file,
            line=line,
            hint=_NAME_IT,
            rule="template-arithmetic",
        )
    if "no loader" in str(error):
        return ModelError(
            "the chat template includes, imports or extends another file, and there is none",
            file=file,
            line=line,
            hint="put all of it into one file",
            rule="template-include",
        )
    return ModelError(
        f"the chat template uses a value in a way that its type does not have: {type(error).__name__}: {error}",
        file=file,
        line=line,
        hint=_NAME_IT,
        rule="template-types",
    )


def _line(at: TracebackType | None) -> int | None:
    """The line of the template that was reached."""
    found = None
    while at is not None:
        if at.tb_frame.f_code.co_filename == _OURS:
            found = at.tb_lineno
        at = at.tb_next
    return found


def _file(tokenizer: Any) -> str | None:
    """The file that the template is in, where the tokenizer was loaded from a folder."""
    folder = Path(str(getattr(tokenizer, "name_or_path", "") or ""))
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if str(folder) != "." and (folder / name).is_file():
            return str(folder / name)
    return None
