"""Refusals and apologies: some are right, so they are held to a share and not banned."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from posttrain.filters.base import Decide, Filter, FilterContext, Scope, Verdict, each_answer

_OPENING = 300  # characters: what comes later is seldom the answer's gist
_DO = (
    "help|assist|provide|answer|comply|fulfill?|support|engage|share|create|generate|write|offer|discuss|continue|"
    "complete|respond|produce|participate|do (?:that|this|it)|give you|browse|access"
)
_REFUSAL = re.compile(
    rf"\b(?:I|we)(?: (?:simply|really|just))? (?:can(?:no|')t|can not|could(?: not|n't)|won't|will not) "
    rf"(?:(?:directly|ethically|in good conscience) )?(?:{_DO})\b"
    rf"|\b(?:I am|I'm|we are|we're) (?:not able|unable|not (?:allowed|permitted)) to (?:{_DO})\b"
    r"|\bI (?:must|have to) (?:decline|refuse)\b|\bI(?:'d| would) rather not\b"
    r"|\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
    r"|\b(?:goes )?against my (?:guidelines|programming|principles)\b"
    r"|\bI (?:do not|don't) (?:have (?:the ability|access|personal|real-time)|feel comfortable)\b",
    re.IGNORECASE,
)
_APOLOGY = re.compile(
    r"(?:(?:I am|I'm|we are|we're) (?:so |very |really |truly |deeply |terribly )?sorry\b|sorry\b"
    r"|(?:please accept )?(?:my|our) (?:sincere(?:st)? |deepest )?apologies\b|apologies\b"
    r"|I (?:do |sincerely |must |want to |would like to )?apologi[sz]e\b)",
    re.IGNORECASE,
)


class Refusals(Filter):
    """Keeps answers that refuse, and answers that open with an apology, to a share of what is kept (Llama 3, 4.2.3).

    One pass, in the order of the rows: such an answer is kept as long as with it the kept ones of its kind are no more
    than the share of all kept so far. So the share holds at every point, nothing is drawn by chance, and the first of a
    sorted file are the ones to go: shuffle it, and put this filter last, since later ones change the share. An apology
    that also refuses counts as both. Figure: the share there would be with this row. Does not see: other languages
    (`phrases`), refusals after the first 300 characters, and whether a refusal is right.
    """

    scope: ClassVar[Scope] = "corpus"
    use: Literal["refusals"] = "refusals"
    max_refusals: float = Field(default=0.05, ge=0, le=1, description="largest share of refusals among kept rows")
    max_apologies: float = Field(default=0.05, ge=0, le=1, description="largest share of apologies among kept rows")
    phrases: tuple[str, ...] = Field(
        default=(), strict=False, description="further phrases that make an answer a refusal, in any case"
    )

    def start(self, context: FilterContext) -> Decide:
        phrases = tuple(phrase.lower() for phrase in self.phrases if phrase.strip())
        shares = {"refusal": self.max_refusals, "apology": self.max_apologies}
        kept = dict.fromkeys(shares, 0)
        rows_kept = 0

        def kinds(answer: str) -> list[str]:
            opening = answer[:_OPENING].replace("’", "'").lstrip(" \t\n\"'*_>")
            refuses = _REFUSAL.search(opening) or any(phrase in opening.lower() for phrase in phrases)
            return ["refusal"] * bool(refuses) + ["apology"] * bool(_APOLOGY.match(opening))

        def verdict(answer: str) -> Verdict | None:
            nonlocal rows_kept
            found = kinds(answer)
            for kind in found:
                if kept[kind] + 1 > shares[kind] * (rows_kept + 1):
                    return Verdict(f"{kind} above its share", (kept[kind] + 1) / (rows_kept + 1))
            for kind in found:
                kept[kind] += 1
            rows_kept += 1
            return None

        return each_answer(verdict)
