"""The quickstart's prompts, rewards and base model, as shipped."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from support.content import DATA, REWARD, load, says

SPLITS = ("train", "dev", "heldout")


@pytest.fixture(scope="module")
def generator():
    return load(DATA / "word_problems.py")


@pytest.fixture(scope="module")
def shipped():
    return {
        split: [json.loads(line) for line in (DATA / f"word-problems.{split}.jsonl").read_text("utf-8").splitlines()]
        for split in SPLITS
    }


def test_the_generator_makes_the_shipped_prompts(generator, shipped):
    for split in SPLITS:
        text = "\n".join(json.dumps(row) for row in generator.prompts(split)) + "\n"
        assert text.encode() == (DATA / f"word-problems.{split}.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("split", "problems", "requests"), [("train", 4000, 2000), ("dev", 600, 200), ("heldout", 1000, 400)]
)
def test_sizes(shipped, split, problems, requests):
    rows = shipped[split]
    assert {tuple(row) for row in rows} == {("prompt", "answer")}
    assert sum(row["answer"] is not None for row in rows) >= problems
    assert sum(row["answer"] is None for row in rows) >= requests


def test_no_prompt_is_in_two_sets_or_twice_in_one(shipped):
    everything = [row["prompt"] for split in SPLITS for row in shipped[split]]
    assert len(everything) == len(set(everything))


def test_the_corpus_holds_no_dev_or_heldout_prompt(generator, shipped):
    hidden = {row["prompt"] for split in ("dev", "heldout") for row in shipped[split]}
    assert not hidden & {prompt for prompt, _ in islice(generator.corpus(0), 20_000)}


@pytest.mark.parametrize("name", ["word-problems", "readers", "notes", "step-problems"])
def test_golden_cases(name):
    module = load(REWARD / f"{name}.py")
    cases = [json.loads(line) for line in (REWARD / f"{name}.cases.jsonl").read_text("utf-8").splitlines()]
    assert len(cases) >= 15
    for case in cases:
        scores = getattr(module, case["function"])(
            [[{"role": "user", "content": case["prompt"]}]],
            [[{"role": "assistant", "content": case["completion"]}]],
            **{column: [value] for column, value in case["columns"].items()},
        )
        assert scores == [case["expected"]], case


def test_good_answers_are_rewarded(generator):
    """The generator's solutions are correct, and the readers like notes that keep the rule better than others."""
    correct = load(REWARD / "word-problems.py").correct
    readers, notes = load(REWARD / "readers.py").impression, load(REWARD / "notes.py").well_written
    rng, good, bad = generator.Random(3), [], []
    for _ in range(1000):
        problem, request = generator.problem(rng), generator.request(rng)
        solved = generator.solution(generator.work(problem.story.way, problem.numbers))
        assert correct([problem.prompt], [says(solved)], [str(problem.answer)]) == [1.0]
        note = " ".join(generator.note(rng, request.occasion, request.name, request.thing))
        messy = generator.answer_request(rng, request)
        prompt = [{"role": "user", "content": request.prompt}]
        for written in (note, messy):
            side = good if notes([prompt], [says(written)], [None]) == [1.0] else bad
            side += readers([prompt], [says(written)], [None])
    assert min(len(good), len(bad)) > 100
    assert sum(better > worse for better, worse in zip(good, bad, strict=False)) / min(len(good), len(bad)) > 0.9


BASES = pytest.mark.parametrize("base", ["tiny-base", "step-base"])


@BASES
def test_the_base_is_small_and_safe(base: str):
    files = [path for path in (DATA / base).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors", ".md"}
    assert sum(path.stat().st_size for path in files) < 5_000_000


@BASES
def test_the_base_loads_and_its_chat_template_goes_round(base: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DATA / base)
    model = AutoModelForCausalLM.from_pretrained(DATA / base)
    assert 0.75e6 < model.num_parameters() < 1.25e6
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id

    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Mia has 12 plums – naïve 🙂?"}]
    answered = [*asked, *says("12 + 3 = 15. Answer: 15")]
    start = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    assert whole.startswith(start)
    assert tokenizer.decode(tokenizer(whole, add_special_tokens=False)["input_ids"]) == whole

    masked = tokenizer.apply_chat_template(answered, return_dict=True, return_assistant_tokens_mask=True)
    spoken = [token for token, own in zip(masked["input_ids"], masked["assistant_masks"], strict=True) if own]
    assert tokenizer.decode(spoken) == "12 + 3 = 15. Answer: 15<|end|>"
    digits = [token for token in tokenizer.convert_ids_to_tokens(spoken) if any(sign.isdigit() for sign in token)]
    assert all(sum(sign.isdigit() for sign in token) == 1 for token in digits)
