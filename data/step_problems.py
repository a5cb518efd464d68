"""Makes word problems of three to six steps, and the messy corpus of such answers that a base model can be trained on.

    python data/step_problems.py          # writes step-problems.{train,dev,heldout}.jsonl beside this file

Something is counted, and several things happen to it one after the other. Each step of a solution is a line, and the
value after each is known, so that a wrong step can be found. A problem's split follows from what happens and from
its numbers: no problem is in two splits under other names. Same seed, same bytes, on any machine.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from word_problems import NAMES, RAMBLE, SORRY, THINGS, split_of, write

SEED = 20261
LENGTHS = (3, 4, 5, 6)  # steps, evenly
SIZES = {"train": 4000, "dev": 800, "heldout": 2400}
MOST = 199
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


class Event(NamedTuple):
    """Something that happens. `way`: its steps, where v is the number before the event and _ the last result. `habit`:
    a misreading, which the corpus has `often` in a hundred times."""

    name: str
    text: str
    way: str
    habit: str
    often: int
    ranges: dict[str, tuple[int, int]]


# Two kinds are mostly misread, so that the first choice there is a wrong habit, and the right one has to be found.
_BAGS = {"k": (2, 6), "n": (2, 9)}
EVENTS = (
    Event("more", "{one} finds {n} more {thing}.", "v+n", "v-n", 20, {"n": (2, 30)}),
    Event("away", "{one} gives {n} {thing} to {two}.", "v-n", "v+n", 20, {"n": (2, 30)}),
    Event("again", "{two} brings {one} as many {thing} as {one} has by then.", "v*2", "v+2", 30, {}),
    Event("half", "{one} loses half of all {thing} that {one} has by then.", "v/2", "v-2", 70, {}),
    Event("bags", "{one} buys {k} bags with {n} {thing} in each.", "k*n v+_", "v+n", 35, _BAGS),
    Event("boxes", "{one} gives {two} {k} boxes with {n} {thing} in each.", "k*n v-_", "v-n", 70, _BAGS),
)


class Step(NamedTuple):
    left: int
    sign: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    """`happened`: the events with their numbers; `start`: what there was before them."""

    prompt: str
    start: int
    happened: tuple[tuple[Event, dict[str, int]], ...]
    thing: str

    @property
    def key(self) -> str:
        return f"{self.start} {[(event.name, sorted(numbers.items())) for event, numbers in self.happened]}"

    def steps(self) -> list[Step]:
        """The right ones."""
        found: list[Step] = []
        value = self.start
        for event, numbers in self.happened:
            found += work(event.way, value, numbers)
            value = found[-1].result
        return found


def work(way: str, value: int, numbers: dict[str, int], slip: Callable[[int], int] = int) -> list[Step]:
    """The steps of a way to read an event, from the value before it. `slip`: what is written for a result."""
    steps, known, last = [], {**numbers, "v": value}, value
    for left, sign, right in way.split():
        x, y = (last if term == "_" else known[term] if term in known else int(term) for term in (left, right))
        last = slip(OPERATIONS[sign](x, y))
        steps.append(Step(x, sign, y, last))
    return steps


def problem(rng: Random, length: int) -> Problem:
    """A random problem of so many steps. Every value lies between 1 and 199, and halves are whole."""
    while True:
        start, happened, done = rng.randint(4, 40), list[tuple[Event, dict[str, int]]](), 0
        value = start
        while done < length:
            event = rng.choice(EVENTS)
            numbers = {name: rng.randint(*span) for name, span in event.ranges.items()}
            steps = work(event.way, value, numbers)
            whole = event.name != "half" or value % 2 == 0
            twice = bool(happened) and happened[-1][0] is event
            if not whole or twice or not all(0 < step.result <= MOST for step in steps):
                break
            happened.append((event, numbers))
            done, value = done + len(steps), steps[-1].result
        if done == length:
            break
    one, two = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    told = [event.text.format(one=one, two=two, thing=thing, **numbers) for event, numbers in happened]
    prompt = f"{one} has {start} {thing}. {' '.join(told)} How many {thing} does {one} have now?"
    return Problem(prompt, start, tuple(happened), thing)


def solution(steps: Sequence[Step]) -> str:
    """The steps, a line each, and the answer."""
    return "\n".join([*map(str, steps), f"Answer: {steps[-1].result}"])


def prompts(split: str) -> list[dict[str, str]]:
    """The rows of one split: the prompt, its answer, and the values after each step, with spaces between."""
    rng, rows = Random(f"{SEED} {split}"), dict[str, dict[str, str]]()
    while len(rows) < SIZES[split]:
        made = problem(rng, LENGTHS[len(rows) % len(LENGTHS)])
        if split_of(made.key) == split:  # the same under other names counts once
            values = [str(step.result) for step in made.steps()]
            rows[made.key] = {"prompt": made.prompt, "answer": values[-1], "steps": " ".join(values)}
    table = list(rows.values())
    rng.shuffle(table)
    return table


# ---- the messy corpus -------------------------------------------------------------------------------------------

# How often the corpus answers in each way. "worked": step by step, each event read as often by habit as its kind is,
# and each result a slip in 25 of 100 times. What would be below 0 is written as 0.
WAYS = {"worked": 76, "guess": 8, "sorry": 5, "ramble": 5, "cut": 6}
SLIP = 0.25
SLIPS = (-10, -2, -1, 1, 2, 10)


def corpus(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs, none with the key of a dev or held-out prompt."""
    rng = Random(f"{SEED} corpus {seed}")
    while True:
        made = problem(rng, rng.choice(LENGTHS))
        if split_of(made.key) == "train":
            yield made.prompt, answer(rng, made)


def worked(rng: Random, made: Problem) -> list[Step]:
    """A solution with misreadings and slips, each of which is carried on."""

    def slip(result: int) -> int:
        return max(0, result + rng.choice(SLIPS) if rng.random() < SLIP else result)

    found, value = list[Step](), made.start
    for event, numbers in made.happened:
        way = event.habit if rng.random() < event.often / 100 else event.way
        found += work(way, value, numbers, slip)
        value = found[-1].result
    return found


def answer(rng: Random, made: Problem) -> str:
    """An answer in one of the corpus's ways."""
    steps = worked(rng, made)
    match rng.choices(tuple(WAYS), tuple(WAYS.values()))[0]:
        case "worked":
            return solution(steps)
        case "guess":
            return f"Answer: {max(0, made.steps()[-1].result + rng.choice((*SLIPS, 0)))}"
        case "sorry":
            return rng.choice(SORRY)
        case "ramble":
            return " ".join(rng.choices(RAMBLE, k=rng.randint(2, 4))).format(thing=made.thing)
        case _:
            lines = solution(steps).split("\n")
            return "\n".join(lines[: rng.randint(1, len(lines) - 1)])


if __name__ == "__main__":
    write("step-problems", {split: prompts(split) for split in SIZES})
