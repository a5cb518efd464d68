"""Is a note written in the house's manner? A strict rule, for evaluation: 1.0 when all of the following hold, else 0.0.

- it opens with "Dear" and a name, and with what the prompt asks for (thanks, apology, invitation, delay)
- it calls the thing by two words ("the blue hat"), as the prompts do
- then comes one kind sentence, then one warm closing ("With love!" or "Warm greetings!"), and nothing after it

Whether name and thing are those of the prompt is not asked: a reward model of a million parameters learns manner and
form, but not to compare words (tried: its pick of 8 was then no better than a random one).
A prompt with an answer to check, or one that is no request for a note, gets no score.
"""

from __future__ import annotations

import re

_ASKED = (
    ("thank-you note to", r"thank you (?:so much )?for"),
    ("sorry about", r"I am (?:so )?sorry about"),
    ("note that invites", r"(?:please come|I invite you) to"),
    ("be late for", r"(?:I must tell you that )?I will be late for"),
)
_KIND = r"[A-Z][^.!?]*\b(?:good|kind|glad|lovely|hope|happy)\b[^.!?]*\."
_CLOSING = r"(?:With love|Warm greetings)!"


def well_written(prompts: list, completions: list, answer: list[str | None], **columns: list) -> list[float | None]:
    """One score for each completion, a list of one assistant message; `answer` is None for open requests."""
    return [
        None if expected is not None else _score(prompt[-1]["content"], completion[-1]["content"])
        for prompt, completion, expected in zip(prompts, completions, answer, strict=True)
    ]


def _score(request: str, text: str) -> float | None:
    for asked, matter in _ASKED:
        if asked in request:
            rule = rf"Dear \w+, {matter} the \w+ \w+\. {_KIND} {_CLOSING}"
            return float(re.fullmatch(rule, text.strip()) is not None)
    return None
