"""Planted corpora of copies: duplicates of each kind, prompts evaluated on; and answers that act on a judge."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from posttrain.filters import FilterContext
from support.judges import INJECTIONS, MASTER_KEYS, NAIVE, FakeJudge, gives, judged, serving
from support.planted import Corpus, Figure, Row, measure, row
from support.planted_texts import ANSWERS, NEAR_MISSES, PARAPHRASES

VOCABULARY = sorted({word for text in ANSWERS for word in text.split() if word.isalpha()})
Copy = Callable[[Random, list[str]], str]


def words(rng: Random, low: int = 60, high: int = 60) -> list[str]:
    return rng.choices(VOCABULARY, k=rng.randint(low, high))


def spaced(rng: Random, text: list[str]) -> str:
    return "".join(word + rng.choice((" ", "  ", "\n", " \t")) for word in text)


def edited(edits: int) -> Copy:
    """So many words exchanged, taken out or put in."""

    def copy(rng: Random, text: list[str]) -> str:
        made = list(text)
        for _ in range(edits):
            at, kind = rng.randrange(len(made)), rng.randrange(3)
            made[at : at + (kind != 2)] = [] if kind == 1 else [rng.choice(VOCABULARY)]
        return " ".join(made)

    return copy


def turned(rng: Random, text: list[str]) -> str:
    """The second part before the first."""
    at = rng.randint(len(text) // 3, 2 * len(text) // 3)
    return " ".join(text[at:] + text[:at])


def copies(name: str, entry: dict[str, object], planted: list[Copy], near: list[Copy], more: list[Row]) -> Corpus:
    """100 texts, a copy of each in one of the ways that are to be found, and one in a way that makes another text.

    Originals come first, and have the better score, for a filter that keeps the best.
    """
    rng = Random(name)
    texts = [words(rng) for _ in range(100)]
    originals = [(False, row(text, score=1.0)) for text in (*ANSWERS, *NEAR_MISSES, *map(" ".join, texts))]
    made = [(True, row(rng.choice(planted)(rng, text), score=0.5)) for text in texts]
    made += [(False, row(rng.choice(near)(rng, text), score=0.5)) for text in texts] if near else []
    made += [(True, each) for each in more]
    rng.shuffle(made)
    return Corpus(name, [entry], originals + made)


def contaminated() -> Corpus:
    """Prompts that are evaluated on, whole or more than half of one, among such that share less than half."""
    rng = Random("overlap")
    evaluated = [words(rng, 20, 60) for _ in range(100)]
    planted, clean = [], []
    for text in evaluated:
        start = rng.randrange(len(text) // 4)
        part = text[start : start + rng.randint(len(text) * 3 // 5 + 1, len(text) * 3 // 4)]
        few = text[start : start + len(text) * 2 // 5]
        planted += [" ".join(text).upper() + " !", " ".join([*words(rng, 5, 20), *text, *words(rng, 5, 20)])]
        planted.append(" ".join([*words(rng, 5, 20), *part]))
        clean.append(" ".join([*words(rng, 5, 20), *few, *words(rng, 5, 20)]))
    rows = [(True, row("12", prompt)) for prompt in planted] + [(False, row("12", prompt)) for prompt in clean]
    rng.shuffle(rows)
    return Corpus("overlap", [{"use": "overlap"}], rows, FilterContext([" ".join(text) for text in evaluated]))


def same_meaning(**keys: object) -> list[Corpus]:
    """What `semantic-duplicates` with these keys is to find: the same words in another order, among other texts of the
    same words, and the same meaning in other words, among texts that people might write."""
    entry = {"use": "semantic-duplicates", **keys}
    originals = [(False, row(text, score=1.0)) for text in (*ANSWERS, *NEAR_MISSES)]
    again = [(True, row(said, score=0.5)) for said in PARAPHRASES]
    return [
        copies("another order", entry, [turned], [edited(25)], []),
        Corpus("other words", [entry], originals + again),
    ]


COPIES = [
    copies("exact-duplicates", {"use": "exact-duplicates"}, [spaced], [edited(1), turned], []),
    copies("near-duplicates: 1 or 2 words of 60", {"use": "near-duplicates"}, [edited(1), edited(2)], [edited(9)], []),
    copies("semantic-duplicates: order", {"use": "semantic-duplicates"}, [turned], [edited(25)], []),
    copies(
        "semantic-duplicates: order, other words",
        {"use": "semantic-duplicates"},
        [turned],
        [],
        [row(said, score=0.5) for said in PARAPHRASES],
    ),
    contaminated(),
]  # fmt: skip


def fooled(name: str, answers: list[str], judges: list[Callable[[str], str]]) -> Figure:
    """Answers that act on a judge, each put to each judge that falls for it; the clean ones get the best score."""
    figures = []
    for easy in judges:
        fake = FakeJudge(lambda question, easy=easy: (easy if asked(question) == "planted" else gives(5))(question))
        with serving(fake) as url:
            judge = {"url": url, "model": "easy", "attempts": 1, "patience": 20}
            rows = [(True, row(answer, "planted")) for answer in answers] + [(False, row(text)) for text in ANSWERS]
            figures.append(measure(Corpus(name, [{"use": "judge", "rubric": "quality.md", "judge": judge}], rows)))
    counts = [(one.planted, one.found, one.clean, one.wrong) for one in figures]
    return Figure(name, *map(sum, zip(*counts, strict=True)))


def asked(question: str) -> str:
    return judged(question, "PROMPT")


ON_JUDGES: list[tuple[str, list[str], list[Callable[[str], str]]]] = [
    ("judge: instructions in the answer", INJECTIONS, NAIVE),
    ("judge: answers that say nothing", MASTER_KEYS, [gives(5)]),
]
