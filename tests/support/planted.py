"""Planted corpora: clean rows, and rows with one known fault each, by which filters are measured.

`benchmarks/filter_quality.py` writes recall and precision of each into docs/filters.md. To add a line, add a `Corpus`
to CORPORA. Faults are of the kinds met in practice, hard ones among them: a recall of 1 on easy ones says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pyarrow as pa

from posttrain import filters
from posttrain.filters import FilterContext
from support.planted_texts import ANSWERS, LONG, NEAR_MISSES, PROMPT, TRANSLATED

Row = dict[str, Any]
Damage = Callable[[Random, str], str]


@dataclass(frozen=True)
class Corpus:
    """`rows`: whether a row is planted, and the row, in the order in which they are filtered."""

    name: str
    entries: Sequence[dict[str, Any]]
    rows: Sequence[tuple[bool, Row]]
    context: FilterContext = field(default_factory=FilterContext)


@dataclass(frozen=True)
class Figure:
    """`found` of `planted` rows were dropped or masked, and `wrong` of `clean` ones."""

    name: str
    planted: int
    found: int
    clean: int
    wrong: int

    @property
    def recall(self) -> float:
        return self.found / self.planted

    @property
    def precision(self) -> float:
        return self.found / max(self.found + self.wrong, 1)


def measure(corpus: Corpus) -> Figure:
    taken = caught(corpus)
    planted = [i for i, (bad, _) in enumerate(corpus.rows) if bad]
    found = len(taken.intersection(planted))
    return Figure(corpus.name, len(planted), found, len(corpus.rows) - len(planted), len(taken) - found)


def caught(corpus: Corpus) -> set[int]:
    """The numbers of the rows that were dropped or changed."""
    rows = [row | {"number": i} for i, (_, row) in enumerate(corpus.rows)]
    batches = pa.Table.from_pylist(rows).to_batches(max_chunksize=50)
    kept: dict[int, Row] = {}
    for part in filters.run(batches, filters.parse(corpus.entries), corpus.context):
        kept.update((row["number"], row) for row in part.kept.to_pylist())
    return {row["number"] for row in rows if kept.get(row["number"]) != row}


def corpus(
    name: str,
    entry: dict[str, Any],
    damages: Sequence[Damage],
    near: Sequence[str] = (),
    context: FilterContext | None = None,
    texts: Sequence[str] = ANSWERS,
) -> Corpus:
    """Each text clean, with near misses of this filter, and each text damaged in each way; shuffled."""
    rng = Random(name)
    rows = [(False, row(text)) for text in [*ANSWERS, *NEAR_MISSES, *near]]
    rows += [(True, row(damage(rng, text))) for damage in damages for text in texts]
    rng.shuffle(rows)
    return Corpus(name, [entry], rows, context or FilterContext())


def row(answer: str, prompt: str = PROMPT, **columns: Any) -> Row:
    return {"prompt": prompt, "completion": answer} | columns


def into(text: str, rng: Random, what: str) -> str:
    """`what` between two words of the text."""
    words = text.split(" ")
    place = rng.randrange(len(words) + 1)
    return " ".join([*words[:place], what, *words[place:]])


def plant(*options: str) -> Damage:
    return lambda rng, text: into(text, rng, rng.choice(options))


def append(*options: str) -> Damage:
    return lambda rng, text: text + rng.choice(options)


def put_before(*options: str) -> Damage:
    return lambda rng, text: rng.choice(options) + text


def looped(rng: Random, text: str) -> str:
    words = text.split()
    period = rng.randint(1, min(20, len(words)))
    start = rng.randrange(len(words) - period + 1)
    part = words[start : start + period]
    loop = (part * 60)[: max(15, period * rng.randint(4, 8))]
    return " ".join([*words, *loop])


def lines_again(rng: Random, text: str) -> str:
    line = text.splitlines()[0]
    return "\n".join([text, *(f"{line}" for _ in range(rng.randint(5, 9)))])


def cut(rng: Random, text: str) -> str:
    """The text as it is when tokens run out: at any word, the last sentence not whole."""
    words = text.split(" ")
    place = rng.randrange(max(len(words) // 2, 1), len(words))
    return " ".join(words[:place]).rstrip(".!?\n")


def excited(rng: Random, text: str) -> str:
    return text.replace(".", rng.choice(["!", "!!", "!!!"])) + rng.choice(
        [" Wow!!!", " Great job!!!!", " Yes! Yes! Yes!"]
    )


def emoji(rng: Random, text: str) -> str:
    signs = rng.choice([["😀", "🎉", "🔥"], ["❤️", "✨"], ["👍🏽", "🇩🇪", "👩‍🚀"]])
    words = text.split(" ")
    return " ".join(word + (f" {rng.choice(signs)}" if i % 4 == 0 else "") for i, word in enumerate(words)) + " ✨✨✨"


REFUSALS = (
    "I'm sorry, but I can't help with that. ", "I cannot assist with this request. ", "I’m unable to provide that. ",
    "As an AI language model, I have no opinion. ", "I won't write that. ", "Unfortunately, I must decline. ",
    "That goes against my guidelines. ", "I do not feel comfortable with this. ", "This is not something I do. ",
)  # fmt: skip
APOLOGIES = (
    "I'm sorry for the confusion. ", "I apologize for my mistake. ", "My apologies! ", "Sorry about that. ",
    "I am so sorry. ", "Apologies, I misread. ", "Please forgive my mistake. ",
)  # fmt: skip
SPEAKERS = (
    "\nUser: and then?", "\nHuman: and then?", "\n\nAssistant: It is so.", "\n**User:** and then?", "\nuser\nand then?",
    "\n### Human: and then?", "\nUSER: ok", "\n[User]: and then?", "\nQ: and then?",
)  # fmt: skip
TOKENS = (
    "<|im_end|>", "<|im_start|>", "<|eot_id|>", "</s>", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<<SYS>>",
    "<|endoftext|>", "<｜end▁of▁sentence｜>", "<|assistant|>",
)  # fmt: skip
PLACES = (
    "[Your Name]", "[insert date here]", "[Company Name]", "<your address>", "YOUR_API_NAME", "[Name]", "____",
    "Lorem ipsum dolor sit amet", "{{ user.name }}", "{% if user %}", "${name_of_user}", "{{question}}",
)  # fmt: skip
UNSAFE = (
    "he cooks meth in a meth lab", "porn and more porn", "how to make a bomb, a pipe bomb", "kill yourself, kys",
    "p0rn and n a k e d people", "go and hurt them badly",
)  # fmt: skip
# Made up; the numbers are those that standards and manuals print as examples.
PERSONAL = (
    "mia.k@mail.example.org", "tom+kite@post.co.uk", "+49 30 901820", "+1 (650) 253-0000",
    "DE89 3704 0044 0532 0130 00",
    "GB29NWBK60161331926819", "4111 1111 1111 1111", "5500005555555559", "8.8.8.8", "2001:4860:4860::8888",
    "mia at mail dot org", "Mia Kovač, 12 Elm Street",
)  # fmt: skip
SECRET = (
    "AKIA" + "IOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "hf_" + "aBcDeFgHiJ" * 4, "sk-" + "proj-abc123DEF456ghi789JKL0",
    "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "postgres://mia:kite-and-umbrella@db.local/notes", "my password is kite-and-umbrella",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\n-----END RSA " + "PRIVATE KEY-----",
)  # fmt: skip


def spread(options: Sequence[str], into_: Callable[..., Damage] = plant) -> list[Damage]:
    return [into_(option) for option in options]


def other_language() -> Corpus:
    """English prompts answered in another language, some too short to be told; and clean ones of every language."""
    english = [row(answer) for answer in ANSWERS]
    clean = english + [row(answer, prompt) for prompt, answer in TRANSLATED]
    clean += [row(answer, "Translate this to German, French or Spanish: " + PROMPT) for _, answer in TRANSLATED]
    planted = [row(answer) for _, answer in TRANSLATED] + [
        row(answer, prompt) for prompt, _ in TRANSLATED for answer in LONG
    ]
    planted += [row("Ja, das ist so."), row("Oui, merci."), row("Sí, claro.")]
    rows = [(False, each) for each in clean] + [(True, each) for each in planted]
    Random("language").shuffle(rows)
    return Corpus("language", [{"use": "language"}], rows)


CORPORA = [
    corpus("format: control tokens", {"use": "format"}, spread(TOKENS)),
    corpus("format: role confusion", {"use": "format"}, spread(SPEAKERS, append)),
    corpus("repetition", {"use": "repetition"}, [looped, lines_again]),
    corpus("loop", {"use": "loop"}, [looped, lines_again]),
    corpus("truncated", {"use": "truncated"}, [cut], texts=LONG),
    corpus("truncated: prose", {"use": "truncated", "prose": True}, [cut], texts=LONG),
    corpus("residue: places, template code", {"use": "residue"}, spread(PLACES)),
    corpus(
        "residue: the tokenizer's own tokens",
        {"use": "residue"},
        [plant("<extra_id_3>"), plant("▁<sep>▁"), plant("[eop]")],
        context=FilterContext(special_tokens=["<extra_id_3>", "<sep>", "[eop]", "a", " "]),
    ),
    corpus("emphasis", {"use": "emphasis"}, [excited, emoji]),
    other_language(),
    corpus("unsafe-words", {"use": "unsafe-words"}, spread(UNSAFE)),
    corpus("refusals", {"use": "refusals", "max_refusals": 0, "max_apologies": 1}, spread(REFUSALS, put_before)),
    corpus("apologies", {"use": "refusals", "max_refusals": 1, "max_apologies": 0}, spread(APOLOGIES, put_before)),
    corpus("pii: personal data", {"use": "pii"}, spread(PERSONAL)),
    corpus("pii: keys and passwords", {"use": "pii"}, spread(SECRET)),
]  # fmt: skip
