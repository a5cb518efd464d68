"""The task of several steps, as shipped: problems, their steps, and what checks them."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from random import Random
from typing import Any

import pytest
from support.content import DATA, REWARD, load, says

SPLITS = ("train", "dev", "heldout")


@pytest.fixture(scope="module")
def generator() -> Any:
    load(DATA / "word_problems.py")  # which it imports
    return load(DATA / "step_problems.py")


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[dict[str, str]]]:
    return {
        split: [json.loads(line) for line in (DATA / f"step-problems.{split}.jsonl").read_text("utf-8").splitlines()]
        for split in SPLITS
    }


def test_the_generator_makes_the_shipped_problems(generator: Any) -> None:
    for split in SPLITS:
        text = "\n".join(json.dumps(row) for row in generator.prompts(split)) + "\n"
        assert text.encode() == (DATA / f"step-problems.{split}.jsonl").read_bytes()


def test_lengths_are_as_many_and_no_problem_stands_twice(shipped: dict[str, list[dict[str, str]]]) -> None:
    everything = [
        " ".join(re.findall(r"\d+|finds|gives|brings|half|bags|boxes", row["prompt"]))
        for rows in shipped.values()
        for row in rows
    ]
    assert len(everything) == len(set(everything))  # under other names neither
    for rows in shipped.values():
        lengths = Counter(len(row["steps"].split()) for row in rows)
        assert sorted(lengths) == [3, 4, 5, 6] and len(set(lengths.values())) == 1
        assert all(row["steps"].split()[-1] == row["answer"] for row in rows)
    long = [row for row in shipped["heldout"] if len(row["steps"].split()) >= 5]
    assert len(long) >= 1000


def test_the_corpus_is_of_training_problems(generator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Any]()
    monkeypatch.setattr(generator, "answer", lambda rng, problem: made.append(problem) or "")
    list(islice(generator.corpus(0), 5_000))
    assert {generator.split_of(one.key) for one in made} == {"train"}


def test_solutions_are_right_and_what_goes_wrong_in_the_corpus_is_found(generator: Any) -> None:
    checker = load(REWARD / "step-problems.py")
    random, wrong = Random(3), Counter[bool]()
    for _ in range(1000):
        problem = generator.problem(random, random.choice(generator.LENGTHS))
        steps, asked = problem.steps(), [{"role": "user", "content": problem.prompt}]
        values, text = [step.result for step in steps], generator.solution(steps)

        def right(said: str, asked: Any = asked, values: list[int] = values) -> float:
            (share,) = checker.steps_right([asked], [says(said)], [" ".join(map(str, values))])
            return share * len(values)

        assert checker.correct([asked], [says(text)], [str(values[-1])]) == [1.0]
        assert right(text) == len(steps)
        at, by = random.randrange(len(steps)), random.choice(generator.SLIPS)
        lines = text.split("\n")
        lines[at] = str(steps[at]._replace(result=values[at] + by))
        assert right("\n".join(lines)) == pytest.approx(at)
        wrong[right(generator.solution(generator.worked(random, problem))) < len(steps)] += 1
    assert min(wrong.values()) > 50


def test_long_problems_are_seldom_right_in_the_corpus(generator: Any) -> None:
    correct, random = load(REWARD / "step-problems.py").correct, Random(4)

    def share(length: int) -> float:
        made = [generator.problem(random, length) for _ in range(1000)]
        answers = [str(problem.steps()[-1].result) for problem in made]
        return sum(correct([], [says(generator.answer(random, problem)) for problem in made], answers)) / len(made)

    assert 0.08 < share(3) < 0.25 and share(6) < 0.06
