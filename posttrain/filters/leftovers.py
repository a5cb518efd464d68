"""Residue of templates: template code, unfilled placeholders, special tokens as text."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from posttrain.filters.base import Decide, Filter, FilterContext, Verdict, each_answer

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_TEMPLATE = re.compile(
    r"(?<![\\\w}^_{])\{\{-?[ \t]*[A-Za-z_][\w.\[\]'\"| ()]+-?\}\}"  # Jinja; in LaTeX a word or a sign stands before
    r"|\{%-?[ \t]*(?:if|elif|else|endif|for|endfor|set|block|include|macro)\b"
    r"|<%=?[ \t]|\$\{[A-Za-z_]\w+\}"
)
_PLACE = re.compile(
    r"\[(?!(?-i:EMAIL)\])"  # that is what `pii` writes over an address
    r"(?:(?:your|insert|enter|add|recipient|sender|company|customer|user)\b[^\]\n]{0,60}"
    r"|(?:first |last |full )?name|date|address|phone number|e-?mail(?: address)?|link|url)\](?!\()"
    r"|<(?:your|insert|enter)[ _-][^>\n]{1,60}>"
    r"|\b(?:INSERT|YOUR)_[A-Z_]{2,}\b"
    r"|\blorem ipsum dolor\b",
    re.IGNORECASE,
)

Fault = Literal["special token", "template code", "placeholder"]


class Residue(Filter):
    """Drops answers that hold special tokens of the model's own tokenizer, code of a template, or unfilled places.

    Where the tokenizer is not at hand, the known families are what `format` drops as control tokens. Code blocks are
    searched for special tokens alone. Figure: the number of findings. Does not see: a filled-in wrong value, places
    written in another way (`____`, `[Straße]`); takes a letter that was asked for with places to fill for a fault
    (`allow: [placeholder]`).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"special_tokens"})
    use: Literal["residue"] = "residue"
    allow: tuple[Fault, ...] = Field(default=(), strict=False, description="faults that are let pass")

    def start(self, context: FilterContext) -> Decide:
        # A token such as `a` or ` ` is special to the tokenizer, and ordinary in a text.
        tokens = [token for token in context.special_tokens if len(token) > 2 and not token.isalnum()]
        special = re.compile("|".join(map(re.escape, tokens))) if tokens else None

        def verdict(text: str) -> Verdict | None:
            if special and "special token" not in self.allow and (found := special.findall(text)):
                return Verdict("special token", len(found))
            prose = _CODE.sub(" ", text) if "`" in text else text
            if "template code" not in self.allow and (found := _TEMPLATE.findall(prose)):
                return Verdict("template code", len(found))
            if "placeholder" not in self.allow and (found := _PLACE.findall(prose)):
                return Verdict("placeholder", len(found))
            return None

        return each_answer(verdict)
