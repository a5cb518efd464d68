"""Makes prompts with constraints that a program can check: a task, and one to three kinds of reward/instructions.py.

    python data/instructions.py                            # instructions.{train,dev,heldout}.jsonl beside this file
    python data/instructions.py --train 20000 --seed 7 --out FOLDER

Which split a task belongs to follows from its text, so that no task is in two splits. The kinds in HELD_OUT are in no
training or dev prompt; half of the held-out prompts have one. Constraints that would exclude one another do not meet
(APART, ONLY). Same options, same bytes, on any machine. Card: instructions.md.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
SEED = 20241
SIZES = {"train": 2000, "dev": 160, "heldout": 240}
# In no training or dev prompt. Five are IFEval's; the others are ours that come nearest to those, and would teach them.
HELD_OUT = (
    "startend:quotation",
    "detectable_format:title",
    "keywords:letter_frequency",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "layout:tag",
    "layout:heading_first",
    "letters:words_beginning",
    "marks:parentheses",
    "layout:hashtags",
    "case:every_word",
)


def _rewards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("instructions_reward", HERE.parent / "reward" / "instructions.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


REWARD = _rewards()
KINDS: dict[str, Any] = REWARD.KINDS

# ---- what goes with what ------------------------------------------------------------------------------------------

# Kinds that take hold of the same side of an answer. No two of a family stand in one prompt.
FAMILIES = {
    "size": "length_constraints:number_words length:words_at_most length:words_between length:characters_at_most",
    "sentences": "length_constraints:number_sentences length:sentences length:sentence_words_at_most "
    "words:different_openings",
    "paragraphs": "length_constraints:number_paragraphs length_constraints:nth_paragraph_first_word length:paragraphs "
    "length:paragraph_sentences words:every_paragraph layout:bold_openings length:lines",
    "structure": "detectable_format:number_bullet_lists detectable_format:multiple_sections layout:numbered_list "
    "layout:checklist layout:headings layout:named_headings layout:heading_first layout:table layout:code_block "
    "layout:block_quote case:first_line_capital",
    "inline": "detectable_format:number_highlighted_sections detectable_format:title "
    "detectable_content:number_placeholders",
    "words": "keywords:existence keywords:frequency keywords:forbidden_words words:exactly words:in_order "
    "words:first_sentence words:last_sentence case:word_capital",
    "letters": "keywords:letter_frequency letters:none letters:words_beginning words:longest",
    "case": "change_case:english_capital change_case:english_lowercase change_case:capital_word_frequency "
    "case:every_word",
    "marks": "punctuation:no_comma marks:last marks:every_sentence marks:no_full_stop marks:none marks:questions "
    "marks:parentheses",
    "characters": "characters:ascii characters:no_digits characters:numbers",
    "start": "start:phrase start:word",
    "end": "startend:end_checker end:word end:last_line end:same_sentence detectable_content:postscript "
    "layout:hashtags",
    "language": "language:response_language languages:last_line languages:two_versions",
    "whole": "detectable_format:json_format layout:json_keys layout:json_list layout:comma_list layout:only_bullets "
    "layout:dialogue layout:tag startend:quotation detectable_format:constrained_response answers:choice "
    "answers:verdict_first combination:two_responses answers:several combination:repeat_prompt answers:repeat_at_end",
}
# A kind or family, and those that it never meets: together they could not be followed, or only by a trick.
APART = {
    "size": "sentences",
    "sentences": "paragraphs structure end marks:questions",
    "paragraphs": "structure length:characters_at_most end:last_line end:same_sentence detectable_content:postscript "
    "layout:hashtags",
    "structure": "length:characters_at_most end:same_sentence",
    "letters": "length_constraints:number_words length:words_between sentences paragraphs structure inline words start "
    "end characters:numbers",
    "start": "case:first_line_capital layout:headings layout:named_headings layout:heading_first "
    "length_constraints:nth_paragraph_first_word layout:bold_openings end:same_sentence",
    "words:in_order": "start:word end:word",
    "words:first_sentence": "start:phrase",
    "words:last_sentence": "end",
    "case:word_capital": "change_case:english_lowercase",
    "case:first_line_capital": "case",
    "detectable_format:multiple_sections": "case",
    "punctuation:no_comma": "start:phrase end:last_line",
    "marks:last": "end",
    "marks:every_sentence": "start end structure detectable_format:title",
    "marks:no_full_stop": "start end layout:numbered_list",
    "marks:none": "start end structure",
    "marks:questions": "end",
    "characters:no_digits": "layout:numbered_list detectable_format:multiple_sections",
}
_PLAIN = "keywords:existence keywords:forbidden_words characters:no_digits"
_SHORT = "length_constraints:number_words length:words_at_most"
_ENGLISH = "change_case:english_capital change_case:english_lowercase"
# Kinds that decide the whole answer, and the only others that they meet.
ONLY = {
    "detectable_format:json_format": f"{_PLAIN} length:words_at_most characters:ascii",
    "layout:json_keys": f"{_PLAIN} length:words_at_most characters:ascii",
    "layout:json_list": f"{_PLAIN} characters:ascii",
    "layout:comma_list": f"{_PLAIN} characters:ascii",
    "layout:only_bullets": f"{_PLAIN} {_SHORT} words:in_order words:exactly punctuation:no_comma "
    "detectable_format:number_highlighted_sections",
    "layout:dialogue": f"{_PLAIN} {_SHORT} keywords:frequency words:exactly characters:ascii",
    "layout:tag": f"{_PLAIN} {_SHORT} length:words_between keywords:frequency words:exactly punctuation:no_comma",
    "startend:quotation": f"{_PLAIN} {_SHORT} {_ENGLISH} length:words_between keywords:frequency punctuation:no_comma "
    "length_constraints:number_sentences detectable_format:number_highlighted_sections "
    "detectable_content:number_placeholders",
    "detectable_format:constrained_response": "",
    "answers:choice": "",
    "answers:verdict_first": f"{_PLAIN} length:words_at_most length:words_between punctuation:no_comma",
    "combination:two_responses": f"{_PLAIN} {_SHORT} {_ENGLISH} punctuation:no_comma",
    "answers:several": f"{_PLAIN} {_SHORT} {_ENGLISH} punctuation:no_comma",
    "combination:repeat_prompt": "length_constraints:number_words keywords:existence punctuation:no_comma inline",
    "answers:repeat_at_end": "length_constraints:number_words keywords:existence punctuation:no_comma",
    "language:response_language": f"{_SHORT} length:paragraphs punctuation:no_comma marks:last marks:no_full_stop "
    "characters:no_digits detectable_format:number_bullet_lists layout:numbered_list",
    "languages:last_line": "punctuation:no_comma characters:no_digits",
    "languages:two_versions": "punctuation:no_comma characters:no_digits",
}
REPEATS = ("combination:repeat_prompt", "answers:repeat_at_end")
FAMILY = {kind: family for family, kinds in FAMILIES.items() for kind in kinds.split()}


def go_together(one: str, other: str) -> bool:
    """May two kinds stand in one prompt?"""
    if FAMILY[one] == FAMILY[other]:
        return False
    for here, there in ((one, other), (other, one)):
        if here in ONLY and not {there, FAMILY[there]} & set(ONLY[here].split()):
            return False
        apart = f"{APART.get(here, '')} {APART.get(FAMILY[here], '')}".split()
        if {there, FAMILY[there]} & set(apart):
            return False
    return True


# ---- tasks ----------------------------------------------------------------------------------------------------------
# No task has a comma or a digit in it: a constraint may ask to repeat it, and to use neither.


def _list(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(";"))


SUBJECTS = {
    "thing": _list(
        "a lighthouse; an old bicycle; a wooden boat; a snow globe; a pocket watch; a rocking chair; a market stall; a "
        "railway station; a library at night; a garden shed; a paper kite; a stone bridge; a fishing village; a desert "
        "road; a hot-air balloon; a treehouse; a street musician; a lost umbrella; a mountain hut; a rainy Sunday; a "
        "bakery at dawn; a night train; a broken clock; a family recipe; a message in a bottle; a frozen lake; a robot "
        "that gardens; a cat who reads; a dragon with a cold; a very slow race; a village without clocks; a museum of "
        "small things; a chess club; a community garden; a river ferry; an island with one tree; a school for owls; a "
        "travelling circus; an attic full of letters; a haunted elevator"
    ),
    "activity": _list(
        "baking bread; learning to swim; growing tomatoes; playing the guitar; keeping a diary; watching birds; riding "
        "a bicycle to work; repairing old furniture; learning a language; running a small shop; camping in the rain; "
        "painting with watercolours; photographing the night sky; knitting socks; cooking for a large family; walking "
        "a dog; moving to a new town; saving money; giving a speech; keeping bees; playing chess; singing in a choir; "
        "travelling by train; making cheese; writing poems; teaching children; climbing mountains; sailing; building "
        "model ships; collecting stamps; working from home; getting up early; volunteering; dancing; juggling"
    ),
    "topic": _list(
        "the water cycle; the phases of the moon; the history of paper; how bridges stay up; how vaccines work; why "
        "leaves change colour; why we sleep; how rainbows form; the life of bees; the invention of the wheel; how "
        "volcanoes erupt; what inflation is; how a bill becomes law; the use of maps; how batteries work; the tides; "
        "why cats purr; how bread rises; the seasons; how computers store pictures; what black holes are; how "
        "glaciers move; the origin of chess; how a piano makes its sound; why ships float; the food chain; how "
        "recycling works; what makes a good password; the work of a judge; how birds find their way; photosynthesis; "
        "why deserts are cold at night; the importance of sleep; how cheese is made; the human heart"
    ),
    "person": _list(
        "a neighbour; a former teacher; the mayor; a hotel; a landlord; a new colleague; a friend abroad; the local "
        "newspaper; a customer; a library; a cousin; a sports club; an airline; a doctor; a school; a museum"
    ),
    "matter": _list(
        "a lost suitcase; noise at night; a birthday party; a broken heater; a job interview; a delayed delivery; a "
        "borrowed book; a change of plans; a charity run; a new playground; a missing cat; a leaking roof; a summer "
        "trip; opening hours; a mistake in a bill; an invitation to dinner"
    ),
    "collection": _list(
        "things to pack for a weekend in the mountains; names for a small bakery; reasons to read every day; ways to "
        "save water at home; games for a long train journey; vegetables that grow in a cool climate; questions to ask "
        "a new flatmate; gifts for a grandfather; breakfasts without sugar; ideas for a rainy afternoon; tools that a "
        "carpenter needs; habits of good listeners; places to visit in a harbour town; names for a parrot; causes of "
        "traffic jams; uses of an old newspaper; steps to plan a wedding; things that float; jobs that need patience; "
        "topics for a school project; musical instruments of an orchestra; ways to say thank you; animals that are "
        "awake at night; trees of a city park; ingredients of a good soup; signs of spring; sounds of a kitchen; "
        "things that people forget on a journey; titles for a mystery novel; rules for a shared kitchen"
    ),
    "claim": _list(
        "cats are cleverer than dogs; every child should learn to cook; trains are better than planes; the moon makes "
        "its own light; spiders are insects; homework helps pupils; tea is healthier than coffee; all birds can fly; "
        "a city is a better place to grow up than a village; money makes people happy; water boils faster on a "
        "mountain; sharks are mammals; every house should have a garden; reading is better than watching films; "
        "robots will replace teachers; the sun goes round the earth; bats are blind; honey never spoils; winter is "
        "the best season; museums should be free; gold is heavier than iron; plants need light to grow; whales breathe "
        "air; chess is a sport; a whole is more than its parts; glass is made of sand; breakfast is the most "
        "important meal; everybody should learn to swim; snow is always white; silence is golden"
    ),
}
TASKS = {
    "text": _list(
        "Write a short story about {thing}.; Describe {thing}.; Write a poem about {thing}.; Write an advertisement "
        "for {thing}.; What might happen next after somebody comes upon {thing}?; Write a scene that takes place near "
        "{thing}.; Write a blog post about {activity}.; Give a beginner advice on {activity}.; Why do people enjoy "
        "{activity}?; Write a diary entry about a day of {activity}.; Compare {activity} with {activity}.; Write a "
        "short speech in favour of {activity}.; Explain {topic}.; Explain {topic} to a child.; Write a short article "
        "about {topic}.; Tell me about {topic} as if you were a radio host.; Write an email to {person} about "
        "{matter}.; Write a friendly letter to {person} about {matter}.; Draft a complaint to {person} about {matter}."
    ),
    "list": _list("Name {collection}.; List {collection}.; I need {collection}.; Suggest {collection}."),
    "question": _list(
        "Is it true that {claim}?; Somebody told me that {claim}. Is that so?; Would you say that {claim}?; Do you "
        "think that {claim}?"
    ),
}
# The tasks that suit a kind; all others suit texts, and lists now and then.
_SUITED = {
    "detectable_format:constrained_response": "question",
    "answers:choice": "question",
    "answers:verdict_first": "question",
    "layout:only_bullets": "list",
    "layout:comma_list": "list",
    "layout:json_list": "list",
    "layout:checklist": "list",
}


def task(rng: Random, kinds: Sequence[str]) -> str:
    """A random task that suits the kinds."""
    form = next((_SUITED[kind] for kind in kinds if kind in _SUITED), "list" if rng.random() < 0.1 else "text")
    text = rng.choice(TASKS[form])
    for name, subjects in SUBJECTS.items():
        chosen = rng.sample(subjects, text.count(f"{{{name}}}"))
        for subject in chosen:
            text = text.replace(f"{{{name}}}", subject, 1)
    return text


def split_of(text: str) -> str:
    """The only split that a task may be in."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100
    return "heldout" if bucket < 15 else "dev" if bucket < 25 else "train"


# ---- hints ----------------------------------------------------------------------------------------------------------
# Of a few that were tried, those that SmolLM2-135M-Instruct followed most often without copying from them. Kinds for
# which none was better than no hint have none. Forms with dots are filled in; a whole example is repeated instead.

_LOWER = _list(
    "the market opens early.; a boat lies near the shore.; my brother likes old songs.; rain fell all night.; two "
    "birds sat on the wall.; she keeps her letters in a box.; we had soup for dinner.; a clock stands in the hall.; he "
    "paints his door every spring.; the train was late again.; snow covers the roof.; the lamp gives a soft light."
)


def hint(rng: Random, kind: str, given: Mapping[str, Any]) -> str | None:
    """How to follow a constraint, said to a policy that cannot yet; None for a kind without a hint."""
    at_least = given.get("relation", given.get("capital_relation")) == "at least"
    match kind:
        case "keywords:existence":
            return f"Let the first sentence be about {' and '.join(given['keywords'])}."
        case "keywords:frequency":
            return f'Use "{given["keyword"]}" in every sentence.' if at_least else None
        case "startend:end_checker":
            return f"Write three sentences. Then write: {given['end_phrase']}"
        case "punctuation:no_comma":
            return "Write short simple sentences. Write no commas. Begin a new sentence where a comma would be."
        case "change_case:english_lowercase":
            return f"you write only in small letters. for example: {' '.join(rng.sample(_LOWER, 3))}"
        case "change_case:english_capital":
            return "ANSWER LIKE A TELEGRAM, ALL IN CAPITAL LETTERS, AS I DO HERE. ONE SENTENCE IS ENOUGH."
        case "change_case:capital_word_frequency":
            many = f"at LEAST {given['capital_frequency']} of THEM"
            return f"WRITE some WORDS in CAPITAL letters, AS I do HERE: {many}." if at_least else None
        case "detectable_format:number_highlighted_sections":
            return _form("*...* ...", given["num_highlights"], "\n")
        case "detectable_format:multiple_sections":
            name, more = given["section_spliter"], range(2, given["num_sections"] + 1)
            rest = (f'Then write "{name} {number}" and two sentences.' for number in more)
            return " ".join([f'Begin with "{name} 1" and two sentences.', *rest])
        case "detectable_format:json_format":
            keys = 'a JSON object with the keys "first" and "second"'
            return f'Write two short sentences as {keys}: {{"first": "...", "second": "..."}}'
        case "length_constraints:number_words":
            return "Write a long answer with many details." if at_least else None
        case "length_constraints:number_paragraphs":
            return _form("...", given["num_paragraphs"], "\n\n***\n\n")
        case "length_constraints:nth_paragraph_first_word":
            first = f'Paragraph {given["nth_paragraph"]} begins with "{given["first_word"].capitalize()}".'
            each = f"Write {given['num_paragraphs']} paragraphs of one sentence each, with an empty line between them."
            return f"{each} {first}"
        case "combination:two_responses":
            return _form("...", 2, "\n\n******\n\n")
        case _:
            return None


def _form(part: str, count: int, between: str) -> str:
    return f"Use this form:\n\n{between.join([part] * count)}"


# ---- prompts --------------------------------------------------------------------------------------------------------


def _weight(kind: str) -> float:
    """IFEval's kinds come six times as often as ours: a small model learns one from dozens of prompts, not from a few.
    Other languages come less often, as it hardly knows them."""
    return 0.5 if FAMILY[kind] == "language" else 6.0 if kind.partition(":")[0] in REWARD.IFEVAL else 1.0


def kinds_of(rng: Random, first: Sequence[str], more: Sequence[str]) -> list[str]:
    """One to three kinds that go together, the first of `first` and the others of `more`."""
    chosen = rng.choices(first, [_weight(kind) for kind in first])
    for _ in range(rng.choices((0, 1, 2), (6, 3, 1))[0]):
        left = [kind for kind in more if all(go_together(kind, other) for other in chosen)]
        if left:
            chosen += rng.choices(left, [_weight(kind) for kind in left])
    return chosen


def _drawn(rng: Random, kinds: Sequence[str], request: str) -> list[dict[str, Any]]:
    """Parameters of which no two constraints share a word."""
    while True:
        given = [KINDS[kind].draw(rng, request) for kind in kinds]
        words = [set(_texts(each)) for each in given]
        if sum(map(len, words)) == len(set().union(*words)):
            return given


def _texts(given: dict[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if not name.endswith("relation"):
            yield from [value] if isinstance(value, str) else value if isinstance(value, list) else []


def _written(rng: Random, request: str, sentences: Sequence[str], repeated: bool) -> str:
    """The task and its constraints as one text, in one of a few ways. A task to repeat stands above them."""
    way = rng.choices(("run on", "below", "points", "before"), (6, 2, 2, 2))[0]
    if way == "points" and len(sentences) > 1:
        return "\n".join([request, *(f"- {sentence}" for sentence in sentences)])
    if way == "below":
        return "\n\n".join([request, " ".join(sentences)])
    if way == "before" and not repeated:
        return " ".join([*sentences, request])
    return " ".join([request, *sentences])


def prompts(split: str, count: int, seed: int = SEED) -> list[dict[str, Any]]:
    """Rows of one split: the prompt, IFEval's two columns, and whether a kind is in it that no training prompt has."""
    rng = Random(f"{seed} {split}")
    trained = [kind for kind in KINDS if kind not in HELD_OUT]
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        unseen = split == "heldout" and len(rows) % 2 == 1
        kinds = kinds_of(rng, HELD_OUT, list(KINDS)) if unseen else kinds_of(rng, trained, trained)
        rng.shuffle(kinds)
        kinds.sort(key=lambda kind: kind not in REPEATS)  # what is to be repeated is the task alone
        request = task(rng, kinds)
        while split_of(request) != split:
            request = task(rng, kinds)
        given = _drawn(rng, kinds, request)
        pairs = zip(kinds, given, strict=True)
        sentences = [KINDS[kind].phrase(rng.choice(KINDS[kind].phrasings), each) for kind, each in pairs]
        prompt = _written(rng, request, sentences, kinds[0] in REPEATS)
        row = {"prompt": prompt, "instruction_id_list": kinds, "kwargs": given, "unseen_kinds": unseen}
        if split == "train":
            aside = Random(f"{seed} {prompt}")
            hints = (hint(aside, kind, each) for kind, each in zip(kinds, given, strict=True))
            row["hint"] = "\n\n".join(filter(None, hints)) or None
        rows[prompt] = row
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for split, size in SIZES.items():
        parser.add_argument(
            f"--{split}", type=int, default=size, help=f"prompts of instructions.{split}.jsonl ({size})"
        )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of the files")
    options = parser.parse_args()
    for split in SIZES:
        path = options.out / f"instructions.{split}.jsonl"
        lines = [json.dumps(row) for row in prompts(split, getattr(options, split), options.seed)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        print(f"{path.name}: {len(lines)} prompts")


if __name__ == "__main__":
    main()
