"""Filters that look at the form of one answer: is it whole, clean and of a sensible length?"""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from posttrain.config.section import MOST, complain
from posttrain.filters.base import Decide, Filter, FilterContext, Verdict, dropped
from posttrain.filters.rows import Rows

# Control tokens of the usual chat templates, written out as text. `<s>` is also HTML's strike-through: that is the
# one form here which an honest answer may hold.
_CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>"  # <|eot_id|>, <|im_start|>
    r"|<｜[^｜<>\s]{1,40}｜>"  # DeepSeek's full-width bars
    r"|</?s>|<(?:pad|unk|bos|eos|mask|start_of_turn|end_of_turn)>"
    r"|\[/?INST\]|<</?SYS>>|\[(?:PAD|UNK|CLS|SEP|MASK)\]"
    r"|^###[ \t]*(?:Instruction|Response)\b",
    re.MULTILINE,
)
# What stays of `<|start_header_id|>assistant<|end_header_id|>` when only the control tokens are taken out.
_BARE_HEADER = r"\A(?:user|assistant)\n|\n(?:user|assistant)(?=\n|\Z)"

Fault = Literal["empty answer", "unfinished", "broken characters", "control token", "role confusion"]


class Format(Filter):
    """Drops answers that are empty, cut off, hold bytes that are no text, control tokens, or speak for another role.

    Figure: for `unfinished` the answer's length, otherwise the number of findings.
    Does not see: an answer that stops in mid-sentence by itself, control tokens of an unusual template (`tokens`).
    """

    use: Literal["format"] = "format"
    allow: tuple[Fault, ...] = Field(default=(), strict=False, description="faults that are let pass")
    tokens: tuple[str, ...] = Field(
        default=(), strict=False, description="further strings that count as control tokens"
    )
    roles: tuple[str, ...] = Field(
        default=("user", "human", "assistant"),
        strict=False,
        description="names that must not open a line as a speaker, as in 'User: …'",
    )

    def start(self, context: FilterContext) -> Decide:
        further = "|".join(re.escape(token) for token in self.tokens if token)
        control = re.compile(f"{_CONTROL.pattern}|{further}", re.MULTILINE) if further else _CONTROL
        names = "|".join(re.escape(role) for role in self.roles)
        speaker = re.compile(
            rf"^[ \t]*(?:\*\*|#+[ \t]*)?(?i:{names})(?:\*\*)?[ \t]*:|{_BARE_HEADER}" if names else _BARE_HEADER,
            re.MULTILINE,
        )

        patterns: list[tuple[Fault, re.Pattern[str]]] = [
            ("broken characters", re.compile("\ufffd")),
            ("control token", control),
            ("role confusion", speaker),
        ]
        patterns = [(fault, pattern) for fault, pattern in patterns if fault not in self.allow]
        empty, unfinished = "empty answer" not in self.allow, "unfinished" not in self.allow

        def fault(text: str, finish: str | None, length: int) -> Verdict | None:
            if empty and not text.strip():
                return Verdict("empty answer", 0)
            if unfinished and finish == "length":
                return Verdict("unfinished", length)
            for reason, pattern in patterns:
                if findings := pattern.findall(text):
                    return Verdict(reason, len(findings))
            return None

        def decide(rows: Rows) -> dict[int, Verdict]:
            finishes = rows.column("finish") if rows.has("finish") else [None] * len(rows)
            return dropped(map(fault, rows.answers, finishes, rows.lengths))

        return decide


class Length(Filter):
    """Drops answers outside the bounds, in tokens of the policy; in words where the rows have no `n_tokens`.

    Figure: the answer's length.
    """

    use: Literal["length"] = "length"
    min_tokens: int = Field(default=1, ge=0, le=MOST, description="shortest answer kept")
    max_tokens: int | None = Field(default=None, ge=1, le=MOST, description="longest answer kept; null: no bound")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            message = f"max_tokens ({self.max_tokens}) is below min_tokens ({self.min_tokens})"
            complain(("max_tokens",), message, rule="recipe-values-clash")
        return self

    def start(self, context: FilterContext) -> Decide:
        def verdict(length: int) -> Verdict | None:
            if length < self.min_tokens:
                return Verdict("too short", length)
            too_long = self.max_tokens is not None and length > self.max_tokens
            return Verdict("too long", length) if too_long else None

        return lambda rows: dropped(map(verdict, rows.lengths))
