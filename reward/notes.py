"""Is a note well written? A strict rule, for evaluation: 1.0 when all of the following hold, else 0.0.

- it greets the person named in the prompt, and opens with what the prompt asks for (thanks, apology, invitation, delay)
- it names the thing exactly as the prompt does
- then comes one kind sentence, then one closing, and nothing after it

A prompt with an answer to check, or one that is no request for a note, gets no opinion.
"""

from __future__ import annotations

import re

_ASKED = (
    (re.compile(r"thank-you note to (?P<name>\w+) for the (?P<thing>.+)\."), r"thank you (?:so much )?for"),
    (re.compile(r"Write to (?P<name>\w+) that you are sorry about the (?P<thing>.+)\."), r"I am (?:so )?sorry about"),
    (re.compile(r"invites (?P<name>\w+) to the (?P<thing>.+)\."), r"(?:please come|I invite you) to"),
    (
        re.compile(r"Write to (?P<name>\w+) that you will be late for the (?P<thing>.+)\."),
        r"(?:I must tell you that )?I will be late for",
    ),
)
_KIND = r"[A-Z][^.!?]*\b(?:good|kind|glad|lovely|hope|happy)\b[^.!?]*\."
_CLOSING = r"(?:Best wishes|With love|Warm greetings|See you soon)!"


def well_written(prompts: list, completions: list, answer: list[str | None], **columns: list) -> list[float | None]:
    """One score for each completion, a list of one assistant message; `answer` is None for open requests."""
    return [
        None if expected is not None else _score(prompt[-1]["content"], completion[-1]["content"])
        for prompt, completion, expected in zip(prompts, completions, answer, strict=True)
    ]


def _score(request: str, text: str) -> float | None:
    for asked, matter in _ASKED:
        if found := asked.search(request):
            greeting = rf"(?:Dear|Hello) {re.escape(found['name'])},"
            rule = rf"{greeting} {matter} the {re.escape(found['thing'])}\. {_KIND} {_CLOSING}"
            return float(re.fullmatch(rule, text.strip()) is not None)
    return None
