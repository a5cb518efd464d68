"""Stands in for people who read two notes and say which is better: a graded, slightly inconsistent impression.

It is meant for labelling preference pairs (`for: preferences`), as people are too dear to ask about every candidate.
Of the rule that evaluation measures (notes.py) it knows nothing: it looks at words one by one, gives credit for each
thing done well, and its mood is worth up to 0.05 either way. The mood follows from the text, so the same note always
leaves the same impression.
"""

from __future__ import annotations

import hashlib
import re

_WARM = {"good", "kind", "glad", "lovely", "hope", "happy", "friend", "love", "warm", "best", "soon"}
_PLAIN = {"Write", "a", "an", "the", "to", "note", "thank", "you", "for", "that", "are", "sorry", "about", "invites"}
_PLAIN |= {"will", "be", "late"}
_MOOD = 0.05


def impression(prompts: list, completions: list, answer: list[str | None], **columns: list) -> list[float | None]:
    """One score in [0, 1] for each completion, a list of one assistant message; None where there is an answer."""
    return [
        None if expected is not None else _score(prompt[-1]["content"], completion[-1]["content"])
        for prompt, completion, expected in zip(prompts, completions, answer, strict=True)
    ]


def _score(request: str, text: str) -> float:
    wanted = [word for word in re.findall(r"\w+", request) if word not in _PLAIN]
    name, details = wanted[:1], wanted[1:]
    words = re.findall(r"\w+", text)
    sentences = [part.strip() for part in re.split(r"[.!?]", text) if part.strip()]

    addressed = 1.0 if words[1:2] == name else 0.3 if set(name) & set(words) else 0.0
    matter = sum(word in words for word in details) / max(len(details), 1)
    occasion = 1.0 if ("thank" in request) == ("thank" in text) and ("sorry" in request) == ("sorry" in text) else 0.0
    warmth = min(sum(word.lower() in _WARM for word in words) / 2, 1.0)
    ending = 1.0 if text.rstrip().endswith("!") else 0.0
    measure = 1.0 if len(sentences) == 3 and len(words) <= 30 else 0.3 if len(sentences) == 2 else 0.0
    score = 0.25 * addressed + 0.3 * matter + 0.05 * occasion + 0.1 * warmth + 0.1 * ending + 0.2 * measure
    return min(max(score + _mood(request, text), 0.0), 1.0)


def _mood(request: str, text: str) -> float:
    """Noise in [-_MOOD, _MOOD], the same for the same text on every machine."""
    digest = hashlib.sha256(f"{request}\n{text}".encode()).digest()
    return _MOOD * (int.from_bytes(digest[:4], "big") / 2**31 - 1)
