"""Translates errors of a chat template: its file and line, and what to do."""

from __future__ import annotations

import functools
import traceback
from pathlib import Path
from typing import Any

from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError

from posttrain.errors import DataError, InputError, ModelError

_OURS = "<template>"  # how jinja calls the file of a template that has none
_NAME_IT = "mend it, or name another template in the recipe: model.chat_template: FILE"


def explained(error: Exception, tokenizer: Any) -> InputError | None:
    """A DataError where the template refused the messages on purpose, a ModelError where it is at fault itself; None
    where the error does not come from the template."""
    line = _line(error)
    fault = functools.partial(ModelError, file=_file(tokenizer), line=line, hint=_NAME_IT)
    if isinstance(error, TemplateSyntaxError):
        return fault(f"the chat template cannot be read: {error.message}", line=error.lineno, rule="template-syntax")
    if isinstance(error, SyntaxError) or (isinstance(error, RecursionError) and line is None):
        return fault("the chat template is nested too deep", rule="template-nesting")
    if isinstance(error, SecurityError):
        return fault(f"the chat template does what templates may not: {error.message}", rule="template-forbidden")
    if isinstance(error, UndefinedError):
        hint = "guard it with `is defined`, or name another template: model.chat_template: FILE"
        message = f"the chat template uses what is not there: {error.message}"
        return fault(message, hint=hint, rule="template-undefined")
    if type(error) is TemplateError:  # what raise_exception raises
        hint = "change the messages as it says, or name another template: model.chat_template: FILE"
        return DataError(f"the chat template refuses these messages: {error}", hint=hint, rule="template-refuses")
    if line is None and not isinstance(error, TemplateError):
        return None
    if isinstance(error, RecursionError):
        return fault("the chat template calls itself without end", rule="template-recursion")
    if isinstance(error, ArithmeticError):
        return fault(f"the chat template computes what has no value: {error}", rule="template-arithmetic")
    if "no loader" in str(error):
        message = "the chat template includes, imports or extends another file, and there is none"
        return fault(message, hint="put all of it into one file", rule="template-include")
    message = "the chat template uses a value in a way that its type does not have"
    return fault(f"{message}: {type(error).__name__}: {error}", rule="template-types")


def _line(error: Exception) -> int | None:
    """The line of the template that was reached."""
    walked = traceback.walk_tb(error.__traceback__)
    return next((line for frame, line in reversed([*walked]) if frame.f_code.co_filename == _OURS), None)


def _file(tokenizer: Any) -> str | None:
    """The file that the template is in, where the tokenizer was loaded from a folder."""
    folder = Path(str(getattr(tokenizer, "name_or_path", "") or ""))
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        if str(folder) != "." and (folder / name).is_file():
            return str(folder / name)
    return None
