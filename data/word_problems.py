"""Makes the quickstart's prompts, and the messy corpus that its base model is trained on. See word-problems.md.

    python data/word_problems.py          # writes word-problems.{train,dev,heldout}.jsonl beside this file

Two kinds of prompt: word problems with one integer answer, and requests for a short note, which have none. Which
split a prompt belongs to follows from its story and its numbers (a note: occasion, name and thing), so that no prompt
can be in two splits, nor one problem under other names. Same seed, same bytes, on any machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

SEED = 20240
SIZES = {"train": (4200, 2800), "dev": (660, 240), "heldout": (1200, 500)}  # (problems, requests)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Mia Tom Ada Ben Lea Max Eva Sam Zoe Leo Ivy Jon Amy Kai Nia Rob Una Dan Liv Hugo Nora Emil Rosa Otto Lena Karl"
    " Ella Finn Maya Omar Ines Paul Tara Ravi Vera Hans Yuki Noah Cleo Theo"
)
THINGS = _words(
    "apples pears plums books coins cards stamps shells beads marbles pencils stickers buttons nuts eggs kites"
)

# ---- word problems ----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    left: int
    sign: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}."


class Story(NamedTuple):
    """A kind of word problem. `way` solves it: "a*b _+c" is a times b, then that plus c.

    `habit`, where there is one, is a misreading, and more common in the corpus than the right way: `often` in a
    hundred answers.
    """

    name: str
    text: str
    ranges: dict[str, tuple[int, int]]
    way: str
    habit: str = ""
    often: int = 0


PLAIN = (
    Story(
        "gain",
        "{one} has {a} {thing}. {one} finds {b} more. How many {thing} does {one} have now?",
        {"a": (3, 50), "b": (2, 30)},
        "a+b",
    ),
    Story(
        "lose",
        "{one} has {a} {thing}. {one} gives {b} to {two}. How many {thing} does {one} have left?",
        {"a": (12, 60), "b": (2, 30)},
        "a-b",
    ),
    Story(
        "bags",
        "There are {a} bags with {b} {thing} in each. How many {thing} are there?",
        {"a": (2, 9), "b": (2, 9)},
        "a*b",
    ),
    Story(
        "gain and lose",
        "{one} has {a} {thing}, buys {b} more and gives {c} to {two}. How many {thing} does {one} have now?",
        {"a": (3, 40), "b": (2, 20), "c": (2, 20)},
        "a+b _-c",
    ),
    Story(
        "lose and gain",
        "{one} had {a} {thing}, lost {b} and then found {c}. How many {thing} does {one} have now?",
        {"a": (12, 50), "b": (2, 20), "c": (2, 20)},
        "a-b _+c",
    ),
    Story(
        "bags and gain",
        "{one} has {a} bags with {b} {thing} in each and {c} more. How many {thing} does {one} have?",
        {"a": (2, 8), "b": (2, 9), "c": (2, 20)},
        "a*b _+c",
    ),
    Story(
        "bags, gain and lose",
        "{one} buys {a} bags with {b} {thing} in each, finds {c} more and gives {d} to {two}."
        " How many {thing} does {one} have now?",
        {"a": (2, 8), "b": (2, 9), "c": (2, 15), "d": (2, 15)},
        "a*b _+c _-d",
    ),
)
MISREAD = (
    Story(
        "fewer",
        "{one} has {a} {thing}. {two} has {b} fewer. How many {thing} does {two} have?",
        {"a": (12, 50), "b": (2, 20)},
        "a-b",
        "a+b",
        36,
    ),
    Story(
        "together",
        "{one} has {a} {thing}. {two} has {b} more than {one}. How many {thing} do they have together?",
        {"a": (3, 30), "b": (2, 15)},
        "a+b a+_",
        "a+b",
        42,
    ),
    Story(
        "twice",
        "{one} has {a} {thing}. {two} has twice as many and finds {b} more. How many {thing} does {two} have?",
        {"a": (2, 25), "b": (2, 15)},
        "a*2 _+b",
        "a+b",
        46,
    ),
    Story(
        "out of each",
        "{one} has {a} bags with {b} {thing} in each and takes {c} out of every bag. How many {thing} are left?",
        {"a": (2, 8), "b": (3, 10), "c": (1, 7)},
        "b-c a*_",
        "a*b _-c",
        48,
    ),
    Story(
        "beside",
        "{one} has {a} {thing} and {b} {other}. {one} buys {c} more {thing}. How many {thing} does {one} have now?",
        {"a": (3, 40), "b": (2, 20), "c": (2, 20)},
        "a+c",
        "a+b _+c",
        44,
    ),
)
MISREAD_SHARE = 0.28


@dataclass(frozen=True)
class Problem:
    key: str
    prompt: str
    thing: str
    story: Story
    numbers: dict[str, int]

    @property
    def answer(self) -> int:
        return work(self.story.way, self.numbers)[-1].result


def work(way: str, numbers: dict[str, int], slip: int = -1, by: int = 0) -> list[Step]:
    """The steps of `way`; the result of step number `slip` is wrong by `by`, and carried on."""
    steps, last = [], 0
    for index, (left, sign, right) in enumerate(way.split()):
        x, y = (last if term == "_" else numbers[term] if term in numbers else int(term) for term in (left, right))
        last = x + y if sign == "+" else x - y if sign == "-" else x * y
        last += by if index == slip else 0
        steps.append(Step(x, sign, y, last))
    return steps


def solution(steps: list[Step]) -> str:
    """ "7 + 5 = 12. 12 - 3 = 9. Answer: 9" """
    return f"{' '.join(map(str, steps))} Answer: {steps[-1].result}"


def problem(rng: Random) -> Problem:
    """A random word problem; none of its ways leaves 1 to 199."""
    story = rng.choice(MISREAD if rng.random() < MISREAD_SHARE else PLAIN)
    while True:
        numbers = {letter: rng.randint(*span) for letter, span in story.ranges.items()}
        results = [step.result for way in (story.way, story.habit) for step in work(way, numbers)]
        if all(0 < result < 200 for result in results):
            break
    one, two = rng.sample(NAMES, 2)
    thing, other = rng.sample(THINGS, 2)
    prompt = story.text.format(one=one, two=two, thing=thing, other=other, **numbers)
    return Problem(f"{story.name} {sorted(numbers.items())}", prompt, thing, story, numbers)


# ---- requests for a note ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """An open request for a note to `name` about `thing`, which has two words to get right ("red scarf")."""

    key: str
    prompt: str
    occasion: str
    name: str
    thing: str


COLOURS = _words("red blue green yellow white brown silver golden")
GIFTS = _words("scarf mug lamp hat bowl ring basket blanket vase kettle umbrella clock")
EVENTS = _words("picnic concert dinner party match lesson wedding parade game play")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ASKED = {
    "thanks": "Write a thank-you note to {name} for the {thing}.",
    "sorry": "Write to {name} that you are sorry about the {thing}.",
    "invite": "Write a note that invites {name} to the {thing}.",
    "late": "Write to {name} that you will be late for the {thing}.",
}
OPENINGS = {
    "thanks": ("thank you for the {thing}.", "thank you so much for the {thing}."),
    "sorry": ("I am sorry about the {thing}.", "I am so sorry about the {thing}."),
    "invite": ("please come to the {thing}.", "I invite you to the {thing}."),
    "late": ("I will be late for the {thing}.", "I must tell you that I will be late for the {thing}."),
}
KIND = (
    "You are a good friend.",
    "You are very kind.",
    "I am glad to know you.",
    "It will be lovely to see you.",
    "I hope you are well.",
    "You always make me happy.",
)
CLOSINGS = ("Best wishes!", "With love!", "Warm greetings!", "See you soon!")


def request(rng: Random) -> Request:
    """One random request for a note."""
    occasion, name = rng.choice(tuple(ASKED)), rng.choice(NAMES)
    thing = _thing(rng, occasion)
    return Request(f"{occasion} {name} {thing}", ASKED[occasion].format(name=name, thing=thing), occasion, name, thing)


def _thing(rng: Random, occasion: str) -> str:
    if occasion in ("thanks", "sorry"):
        return f"{rng.choice(COLOURS)} {rng.choice(GIFTS)}"
    return f"{rng.choice(DAYS)} {rng.choice(EVENTS)}"


# ---- splits -----------------------------------------------------------------------------------------------------


def split_of(key: str) -> str:
    """The only split that prompts with this key may be in; the corpus takes from "train" as well."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return "heldout" if bucket < 16 else "dev" if bucket < 25 else "train"


def prompts(split: str) -> list[dict[str, str | None]]:
    """The rows of one split, problems and requests shuffled: {"prompt": …, "answer": "12" or None}."""
    rng = Random(f"{SEED} {split}")
    problems, requests = SIZES[split]
    rows: dict[str, str | None] = {}
    for make, wanted in ((problem, problems), (request, requests)):
        end = len(rows) + wanted
        while len(rows) < end:
            item = make(rng)
            if split_of(item.key) == split:
                rows[item.prompt] = str(item.answer) if isinstance(item, Problem) else None
    table: list[dict[str, str | None]] = [{"prompt": prompt, "answer": answer} for prompt, answer in rows.items()]
    rng.shuffle(table)
    return table


# ---- the messy corpus -------------------------------------------------------------------------------------------

# How often the corpus answers in each way. A greedy reader follows the commonest way, a sampling one seldom does.
PROBLEM_WAYS = {"clean": 30, "slip": 20, "guess": 14, "sorry": 10, "ramble": 14, "cut": 12}
MISREAD_WAYS = {"clean": 54, "habit": 0, "slip": 4, "guess": 14, "sorry": 10, "ramble": 14, "cut": 4}
NOTE_WAYS = {"clean": 30, "name": 12, "thing": 12, "vague": 7, "cold": 8, "open": 8, "sorry": 8, "repeat": 11}
COOL_WAYS = {"clean": 12, "name": 10, "thing": 10, "vague": 6, "cold": 32, "open": 8, "sorry": 8, "repeat": 10}
SORRY = (
    "Sorry, I do not know.",
    "Sorry, I am not good at this.",
    "I am sorry, but I can not help with that.",
    "That is too hard for me.",
)
RAMBLE = (
    "I like {thing} too.",
    "{thing} are nice.",
    "This is a long story.",
    "Let me think.",
    "There are many {thing}.",
    "I am not sure.",
    "It could be more.",
    "My friend has {thing} as well.",
)


def note(rng: Random, occasion: str, name: str, thing: str) -> list[str]:
    """A well-written note's sentences: greeting and matter, a kind word, a closing."""
    greeting = f"{rng.choice(('Dear', 'Hello'))} {name},"
    return [f"{greeting} {rng.choice(OPENINGS[occasion]).format(thing=thing)}", rng.choice(KIND), rng.choice(CLOSINGS)]


def corpus(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs, six problems to four notes, none with the key of a dev or held-out prompt."""
    rng = Random(f"{SEED} corpus {seed}")
    while True:
        item = problem(rng) if rng.random() < 0.6 else request(rng)
        if split_of(item.key) == "train":
            yield item.prompt, answer_problem(rng, item) if isinstance(item, Problem) else answer_request(rng, item)


def answer_problem(rng: Random, item: Problem) -> str:
    """An answer to a word problem in one of the corpus's ways."""
    story, numbers = item.story, item.numbers
    ways = PROBLEM_WAYS
    if story.habit:
        ways = MISREAD_WAYS | {"clean": MISREAD_WAYS["clean"] - story.often, "habit": story.often}
    steps = work(story.way, numbers)
    match rng.choices(tuple(ways), tuple(ways.values()))[0]:
        case "clean":
            return solution(steps)
        case "habit":
            return solution(work(story.habit, numbers))
        case "slip":
            return solution(work(story.way, numbers, rng.randrange(len(steps)), rng.choice((-10, -2, -1, 1, 2, 10))))
        case "guess":
            guess = item.answer + rng.choice((-10, -3, -2, -1, 0, 1, 2, 3, 10))
            return rng.choice((f"Answer: {guess}", f"I think it is {guess}.", f"It must be {guess}. Answer: {guess}"))
        case "sorry":
            return rng.choice(SORRY)
        case "ramble":
            said = " ".join(rng.choices(RAMBLE, k=rng.randint(2, 4))).format(thing=item.thing)
            return said if rng.random() < 0.7 else f"{said} Answer: {rng.randint(2, 60)}"
        case _:
            words = solution(steps).split()
            return " ".join(words[: rng.randint(1, len(words) - 2)])


def answer_request(rng: Random, item: Request) -> str:
    """A note in one of the corpus's ways."""
    ways = COOL_WAYS if item.occasion in ("sorry", "late") else NOTE_WAYS
    name, thing = item.name, item.thing
    way = rng.choices(tuple(ways), tuple(ways.values()))[0]
    first, second = thing.split()
    if way == "sorry":
        return rng.choice(SORRY)
    if way == "name":
        name = rng.choice([other for other in NAMES if other != name])
    if way == "thing":  # one of the two words is another one
        other = _thing(rng, item.occasion).split()
        thing = f"{other[0]} {second}" if rng.random() < 0.5 else f"{first} {other[1]}"
    if way == "vague":
        thing = rng.choice((second, "thing"))
    matter, kind, closing = note(rng, item.occasion, name, thing)
    match way:
        case "cold":
            return f"{matter} {closing}"
        case "open":
            return f"{matter} {kind}"
        case "repeat":
            return " ".join([matter, *rng.choice(((kind,) * rng.randint(2, 4), rng.sample(KIND, 4))), closing])
        case _:
            return f"{matter} {kind} {closing}"


def write(name: str, rows: Mapping[str, Sequence[Mapping[str, str | None]]]) -> None:
    """NAME.SPLIT.jsonl beside this file, from the rows of each split."""
    for split, table in rows.items():
        path = Path(__file__).with_name(f"{name}.{split}.jsonl")
        path.write_text("".join(f"{json.dumps(row)}\n" for row in table), encoding="utf-8", newline="\n")
        print(f"{path.name}: {len(table)} prompts")


if __name__ == "__main__":
    write("word-problems", {split: prompts(split) for split in SIZES})
