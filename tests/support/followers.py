"""Answers that follow the constraints of reward/instructions.py, made by rule: a prompt can be followed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

# Short, with different first words; no word that prompts draw, no comma or digit, no word over 7 letters.
ENGLISH = (
    "we all like warm days",
    "they had tea at home",
    "she went to town",
    "you may go too",
    "he left the house",
    "it was dark",
    "our cat ran away",
    "then rain fell",
    "nobody saw the kite",
    "both of them sang",
)
OTHER = {
    "de": "der Hund schläft heute im Haus und wir gehen nach draußen",
    "es": "el perro duerme hoy en la casa y nosotros salimos a la calle",
    "fr": "le chien dort dans la maison et nous allons dehors avec nos amis",
    "it": "il cane dorme nella casa e noi andiamo fuori con gli amici",
    "pt": "o cachorro dorme na casa e nós não vamos para a rua com os amigos",
}


@dataclass
class Draft:
    """Sentences without their marks, by paragraph, and what stands around them."""

    paragraphs: list[list[str]]
    counted: bool = False  # whether a constraint counts the sentences
    filler: str = "so"
    mark: str = "."
    last_mark: str = ""
    questions: int = 0
    opening: str = ""
    closing: str = ""
    head: list[str] = field(default_factory=list)
    middle: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    divider: str = "\n\n"

    @property
    def sentences(self) -> list[str]:
        return [sentence for paragraph in self.paragraphs for sentence in paragraph]

    def add(self, words: str, paragraph: int = 0, sentence: int = 0) -> None:
        self.paragraphs[paragraph][sentence] += f" {words}"

    def spread(self, word: str, times: int) -> None:
        """One word to the shortest sentence, as often as that; never to the last one, whose last word may be set."""
        for _ in range(times):
            places = [(at, of) for at, paragraph in enumerate(self.paragraphs) for of in range(len(paragraph))]
            at, of = min(places[:-1] or places, key=lambda place: len(self.paragraphs[place[0]][place[1]].split()))
            self.add(word, at, of)

    def text(self) -> str:
        left = sum(map(len, self.paragraphs))
        parts = []
        for number, paragraph in enumerate(self.paragraphs):
            said = []
            for sentence in paragraph:
                mark = "?" if self.questions > 0 else self.mark
                self.questions, left = self.questions - 1, left - 1
                mark = self.last_mark if self.last_mark and not left else mark
                said.append(sentence[0].upper() + sentence[1:] + mark)
            parts.append(" ".join(said))
            if number == 0 and self.middle:
                parts.append("\n".join(self.middle))
        text = f"{self.opening} {self.divider.join(parts)} {self.closing}".strip()
        return "\n".join([*self.head, text, *self.tail])


def follow(kinds: list[str], kwargs: list[dict[str, Any]]) -> str:
    """An answer that follows the constraints, if they can be followed together."""
    given = dict(zip(kinds, kwargs, strict=True))
    values = [value for each in kwargs for value in each.items()]
    counts = ("length_constraints:number_sentences", "length:sentences", "length:paragraph_sentences")
    draft = Draft(_paragraphs(given), counted=any(kind in counts for kind in kinds))
    for kind, each in given.items():
        _letters(draft, kind, each)
    takes_a_sentence = ("start:phrase", "startend:end_checker")  # so before words are spread over them
    for kind, each in sorted(given.items(), key=lambda one: one[0] not in takes_a_sentence):
        _marks(draft, kind, each)
        _structure(draft, kind, each)
        _words(draft, kind, each)
    wanted = [value for name, value in values if name == "low"]
    wanted += [each["num_words"] for each in kwargs if each.get("relation") == "at least" and "num_words" in each]
    while wanted and len(re.findall(r"[^\W_]+", " ".join(draft.sentences))) < wanted[0]:
        draft.add(
            OTHER.get(str(dict(values).get("language")), "and so on"), sentence=min(1, len(draft.paragraphs[0]) - 1)
        )
    if "end:same_sentence" in given:
        same = f"{ENGLISH[-1]} {given.get('words:first_sentence', {'word': ''})['word']}".strip()
        draft.paragraphs[0].insert(0, same)
        draft.paragraphs[-1].append(same)
    if "end:word" in given:
        draft.add(given["end:word"]["word"], -1, -1)
    if draft.middle and len(draft.paragraphs) == 1:
        draft.paragraphs = [draft.paragraphs[0][:-1], draft.paragraphs[0][-1:]]
    text = draft.text()
    for kind, each in given.items():
        text = _whole(draft, text, kind, each)
    for kind, each in given.items():
        text = _case(text, kind, each)
    return text


def _paragraphs(given: dict[str, dict[str, Any]]) -> list[list[str]]:
    paragraphs, sentences, language = 1, 2, None
    for kind, each in given.items():
        match kind:
            case "length_constraints:number_paragraphs" | "length_constraints:nth_paragraph_first_word":
                paragraphs, sentences = each["num_paragraphs"], 1
            case "length:paragraphs" | "length:lines":
                paragraphs, sentences = each["n"], 1
            case "length:paragraph_sentences":
                paragraphs, sentences = 2, each["n"]
            case "words:every_paragraph" | "layout:bold_openings":
                paragraphs, sentences = 2, 1
            case "length_constraints:number_sentences":
                sentences = each["num_sentences"] - (each["relation"] == "less than")
            case "length:sentences" | "words:different_openings":
                sentences = each["n"]
            case "language:response_language":
                language = each["language"]
            case "length:sentence_words_at_most":
                sentences = 3
    if "marks:questions" in given and "length:paragraph_sentences" not in given:
        sentences = 5 if paragraphs == 1 else 2
    pool = iter([OTHER[language]] * 20 if language else ENGLISH * 4)
    return [[next(pool) for _ in range(sentences)] for _ in range(paragraphs)]


def _letters(draft: Draft, kind: str, given: dict[str, Any]) -> None:
    letter = given.get("letter", "")
    if kind == "letters:none" or given.get("let_relation") == "less than":
        draft.filler = next(word for word in ("so", "it", "add") if letter not in word)
        draft.paragraphs = [
            [
                " ".join(word for word in sentence.split() if letter not in word) or draft.filler
                for sentence in paragraph
            ]
            for paragraph in draft.paragraphs
        ]
    elif kind == "keywords:letter_frequency":
        draft.spread(letter, given["let_frequency"])
    elif kind == "letters:words_beginning":
        draft.spread(f"{letter}o", given["n"])


def _marks(draft: Draft, kind: str, given: dict[str, Any]) -> None:
    match kind:
        case "marks:every_sentence":
            draft.mark = given["mark"]
        case "marks:last":
            draft.last_mark = given["mark"]
        case "marks:no_full_stop":
            draft.mark = "!"
        case "marks:questions":
            draft.questions = given["n"]
        case "marks:parentheses":
            draft.spread(f"({draft.filler})", given["n"])


def _structure(draft: Draft, kind: str, given: dict[str, Any]) -> None:
    filler, n = draft.filler, given.get("n", 0)
    match kind:
        case "length_constraints:number_paragraphs":
            draft.divider = "\n***\n"
        case "length:lines":
            draft.divider = "\n"
        case "length_constraints:nth_paragraph_first_word":
            paragraph = draft.paragraphs[given["nth_paragraph"] - 1]
            paragraph[0] = f"{given['first_word']} {paragraph[0]}"
        case "layout:bold_openings":
            for paragraph in draft.paragraphs:
                paragraph[0] = f"**{filler}** {paragraph[0]}"
        case "detectable_format:number_bullet_lists":
            draft.middle = [f"* {filler}"] * given["num_bullets"]
        case "detectable_format:multiple_sections":
            draft.middle = [f"{given['section_spliter']} {at + 1}\n{filler}" for at in range(given["num_sections"])]
        case "layout:numbered_list":
            draft.middle = [f"{at + 1}. {filler}" for at in range(n)]
        case "layout:checklist":
            draft.middle = [f"- [ ] {filler}"] * n
        case "layout:headings":
            draft.middle = [f"# {filler}"] * n
        case "layout:named_headings":
            draft.middle = [f"# {name}" for name in given["names"]]
        case "layout:table":
            columns = given["columns"]
            rows = [columns, ["---"] * len(columns), *[[filler] * len(columns)] * given["rows"]]
            draft.middle = [" | ".join(row) for row in rows]
        case "layout:code_block":
            draft.middle = ["```", filler, "```"]
        case "layout:block_quote":
            draft.middle = [f"> {filler}"]
        case "layout:heading_first":
            draft.head = [f"# {filler}"]
        case "case:first_line_capital":
            draft.head = [filler.upper()]
        case "layout:hashtags":
            draft.tail = [f"#{filler} " * n]
        case "detectable_content:postscript":
            draft.tail = [f"{given['postscript_marker']} {filler}"]
        case "end:last_line":
            draft.tail = [given["line"]]


def _words(draft: Draft, kind: str, given: dict[str, Any]) -> None:
    word, filler, n = given.get("word", ""), draft.filler, given.get("n", 0)
    match kind:
        case "detectable_format:number_highlighted_sections":
            draft.spread(f"*{filler}*", given["num_highlights"])
        case "detectable_content:number_placeholders":
            draft.spread(f"[{filler}]", given["num_placeholders"])
        case "detectable_format:title":
            draft.spread(f"<<{filler}>>", 1)
        case "keywords:existence":
            draft.add(" ".join(given["keywords"]))
        case "keywords:frequency" if given["relation"] == "at least":
            draft.spread(given["keyword"], given["frequency"])
        case "words:exactly":
            draft.spread(word, n)
        case "words:in_order":
            draft.add(" ".join(given["words"]))
        case "words:first_sentence" | "case:word_capital":
            draft.add(word)
        case "words:last_sentence":
            draft.add(word, -1, -1)
        case "words:every_paragraph":
            for at in range(len(draft.paragraphs)):
                draft.add(word, at)
        case "change_case:capital_word_frequency" if given["capital_relation"] == "at least":
            draft.spread(filler.upper() * 2, given["capital_frequency"])
        case "characters:numbers":
            draft.spread("7", n)
        case "start:phrase":
            draft.opening = given["phrase"]
            if given["phrase"].endswith(".") and draft.counted and len(draft.paragraphs[0]) > 1:
                del draft.paragraphs[0][-1]  # it is one of the sentences that are counted
        case "start:word":
            draft.paragraphs[0][0] = f"{word} {draft.paragraphs[0][0]}"
        case "startend:end_checker":
            draft.closing = given["end_phrase"]
            if draft.counted and len(draft.paragraphs[-1]) > 1:
                del draft.paragraphs[-1][-1]


def _whole(draft: Draft, text: str, kind: str, given: dict[str, Any]) -> str:
    filler, n, first = draft.filler, given.get("n", 0), draft.paragraphs[0][0]
    more = [" ".join([filler] * (at + 1)) for at in range(n - 1)]
    match kind:
        case "detectable_format:json_format":
            return json.dumps({"text": text})
        case "layout:json_keys":
            return json.dumps(dict.fromkeys(given["keys"], filler) | {given["keys"][0]: text})
        case "layout:json_list":
            return json.dumps([text, *more])
        case "layout:comma_list":
            return ", ".join([first, *more])
        case "layout:only_bullets":
            return "\n".join(f"- {each}" for each in [" ".join(draft.sentences), *more])
        case "layout:dialogue":
            return f"{given['names'][0]}: {' '.join(draft.sentences)}\n{given['names'][1]}: {filler}"
        case "layout:tag":
            return f"<{given['tag']}>{text}</{given['tag']}>"
        case "startend:quotation":
            return f'"{text}"'
        case "detectable_format:constrained_response":
            return "My answer is yes."
        case "answers:choice":
            return given["options"][0]
        case "answers:verdict_first":
            return f"{given['options'][0]}\n{text}"
        case "combination:two_responses":
            return f"{text}\n******\n{filler}"
        case "answers:several":
            return "\n---\n".join([text, *more])
        case "combination:repeat_prompt":
            return f"{given['prompt_to_repeat']}\n{text}"
        case "answers:repeat_at_end":
            return f"{text}\n{given['request']}"
        case "languages:last_line":
            return f"{text}\n{OTHER[given['language']]}"
        case "languages:two_versions":
            return f"{text}\n---\n{OTHER[given['language']]}"
    return text


def _case(text: str, kind: str, given: dict[str, Any]) -> str:
    match kind:
        case "change_case:english_capital":
            return text.upper()
        case "change_case:english_lowercase":
            return text.lower()
        case "case:every_word":
            return re.sub(r"[^\W_]+(?:['’-][^\W_]+)*", lambda word: word[0][0].upper() + word[0][1:], text)
        case "case:word_capital":
            return re.sub(given["word"], given["word"].upper(), text, flags=re.IGNORECASE)
    return text
