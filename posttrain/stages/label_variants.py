"""Puts multiple-choice questions to a policy in several ways: labels, examples, order, words around them. Reported
only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from posttrain.config.label_variants import LabelVariants
from posttrain.data.choices import Question, read_questions
from posttrain.engines.protocol import Ids, context_length
from posttrain.errors import DataError, InputError
from posttrain.evaluation.label_variants import Variant, figures, variants
from posttrain.evaluation.likelihood_shards import Work, log_likelihoods
from posttrain.job import Job

FEW = 30  # questions


def run(job: Job) -> dict[str, Any]:
    """Inputs: policy. Config: label_variants, engine (use, dtype, shard_tokens). Writes nothing. Returns what
    `evaluation.label_variants.figures` does, and the number of `questions`."""
    questions, asked = _asked(job)
    engine = job.config["engine"]
    pairs = [pair for by_question in asked.values() for each in by_question for pair in each]
    progress = job.counter(len(pairs), "labels")
    work = Work(job.inputs["policy"], job.scratch, job.workers, engine, engine["shard_tokens"], progress)
    found = iter(log_likelihoods(pairs, work))
    chosen = {
        variant: [_likeliest([next(found)[0] for _ in each]) for each in by_question]
        for variant, by_question in asked.items()
    }
    return {**figures(chosen, questions), "questions": len(questions)}


def check(job: Job) -> dict[str, Any]:
    """Reads the questions and looks whether they fit, without computing anything.

    Raises:
        DataError: a question cannot be read.
        InputError: one does not fit into the model's context.
    """
    questions, asked = _asked(job)
    context = context_length(AutoConfig.from_pretrained(job.inputs["policy"]))
    for variant, by_question in asked.items():
        for number, each in enumerate(by_question):
            longest = max(len(before) + len(label) for before, label in each)
            if longest > context:
                raise InputError(
                    f"evaluate.label_variants: question {number + 1} of those asked has {longest} tokens "
                    f"({variant.family}: {variant.name}), the model's context {context}",
                    hint="ask for fewer `examples`, or take it out",
                    rule="variants-do-not-fit",
                )
    few = [f"label variants of {len(questions)} questions: their intervals are wide"] if len(questions) < FEW else []
    return {"questions": len(questions), **({"fallback": few} if few else {})}


def _asked(job: Job) -> tuple[list[Question], dict[Variant, list[list[tuple[Ids, Ids]]]]]:
    """The questions, and by variant and question the context and the label of each choice, as token ids."""
    section = job.section("label_variants", LabelVariants)
    most = None if section.rows is None else section.examples + section.rows
    rows = read_questions(section.path, most, "evaluate.label_variants")
    examples, questions = rows[: section.examples], rows[section.examples :]
    if not questions:
        raise DataError(
            f"{len(rows)} questions, of which the first {section.examples} are examples: none is left to ask",
            file=section.path,
            hint="give more, or fewer `examples`",
            rule="data-no-rows",
        )
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["policy"])
    most = max(len(question.choices) for question in questions)
    asked = {
        variant: [
            _encoded(tokenizer, text, [variant.label(at) for at in range(len(question.choices))])
            for text, question in zip(variant.prompts(examples, questions), questions, strict=True)
        ]
        for variant in variants(most, section.examples)
    }
    return questions, asked


def _encoded(tokenizer: Any, text: str, labels: Sequence[str]) -> list[tuple[Ids, Ids]]:
    before = tuple(tokenizer.encode(text))
    return [(before, tuple(tokenizer.encode(f"{text} {label}")[len(before) :])) for label in labels]


def _likeliest(totals: Sequence[float]) -> int:
    return max(range(len(totals)), key=lambda at: totals[at])
