"""Emoji and exclamation marks, where there are too many of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.config.section import MOST
from posttrain.filters.base import Decide, Filter, FilterContext, Verdict, each_answer

# A flag is two letters; a skin tone or a joiner belongs to the sign before. © and ✓ are shown as text: they are none.
_EMOJI = (
    r"(?:\p{RI}\p{RI}|(?:\p{Emoji_Presentation}|\p{Extended_Pictographic}\uFE0F)\p{EMod}?)"
    r"(?:\u200D\p{Extended_Pictographic}\uFE0F?\p{EMod}?)*"
)
# Not 5!, n!, (a + b)!, != and !x.
_EXCLAMATION = r"(?<![\d)\]])(?<!\b[^\W\d_])[!！](?![=\w\[])"


class Emphasis(Filter):
    """Drops answers with too many emoji or exclamation marks for their length (Llama 3, section 4.2.3).

    Figure: how many in 100 characters. Does not see: emoticons such as `:-)`, capitals, one exclamation mark that is
    too many; takes a factorial of more than a letter for an exclamation.
    """

    use: Literal["emphasis"] = "emphasis"
    max_emoji: float = Field(default=1.0, ge=0, le=MOST, description="most emoji in 100 characters")
    max_exclamations: float = Field(default=1.5, ge=0, le=MOST, description="most exclamation marks in 100 characters")
    allowed: int = Field(default=2, ge=0, le=MOST, description="so many of each are never too many")

    def start(self, context: FilterContext) -> Decide:
        import regex  # knows what Unicode calls an emoji

        emoji, exclamation = regex.compile(_EMOJI), regex.compile(_EXCLAMATION)

        def verdict(text: str) -> Verdict | None:
            if not text.isascii():
                count = len(emoji.findall(text))
                if count > self.allowed and count * 100 > self.max_emoji * len(text):
                    return Verdict("too many emoji", count * 100 / len(text))
            if "!" in text or "！" in text:
                count = len(exclamation.findall(text))
                if count > self.allowed and count * 100 > self.max_exclamations * len(text):
                    return Verdict("too many exclamation marks", count * 100 / len(text))
            return None

        return each_answer(verdict)
