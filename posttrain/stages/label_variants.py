"""Puts multiple-choice questions to a policy in several ways: labels, examples, order, words around them. Reported
only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer

from posttrain.config.label_variants import LabelVariants
from posttrain.data.choices import Question, read_questions
from posttrain.engines.protocol import Ids, context_length
from posttrain.errors import DataError, InputError
from posttrain.evaluation.label_variants import Variant, figures, variants
from posttrain.evaluation.likelihood_shards import Work, log_likelihoods, tokens_read
from posttrain.evaluation.statistics import FEW
from posttrain.job import Job


class _Asked(NamedTuple):
    """`texts`: by variant the token ids before the answer to each question; `labels`: by variant the ids of its labels;
    `left_out`: names of variants whose labels the tokenizer does not tell apart."""

    questions: list[Question]
    texts: dict[Variant, list[Ids]]
    labels: dict[Variant, list[Ids]]
    left_out: list[str]

    def pairs(self) -> list[tuple[Ids, Ids]]:
        """Each text with each label that its question has."""
        return [
            (before, label)
            for variant, texts in self.texts.items()
            for before, question in zip(texts, self.questions, strict=True)
            for label in self.labels[variant][: len(question.choices)]
        ]


def run(job: Job) -> dict[str, Any]:
    """Inputs: policy. Config: label_variants, engine (use, dtype, shard_tokens). Writes nothing. Returns what
    `evaluation.label_variants.figures` does, the number of `questions`, and variants `left_out`."""
    asked, engine = _asked(job), job.config["engine"]
    pairs = asked.pairs()
    progress = job.counter(len(pairs), "labels")
    work = Work(job.inputs["policy"], job.scratch, job.workers, engine, engine["shard_tokens"], progress)
    found = iter(log_likelihoods(pairs, work))
    chosen = {
        variant: [_likeliest([next(found)[0] for _ in question.choices]) for question in asked.questions]
        for variant in asked.texts
    }
    return {**figures(chosen, asked.questions), "questions": len(asked.questions), "left_out": asked.left_out}


def check(job: Job) -> dict[str, Any]:
    """Reads the questions and looks whether they fit, without computing anything. Returns their number, what they ask
    for (see `stages.amounts.Asked`), and warnings.

    Raises:
        DataError: a question cannot be read.
        InputError: one does not fit into the model's context.
    """
    asked = _asked(job)
    context = context_length(AutoConfig.from_pretrained(job.inputs["policy"]))
    for variant, texts in asked.texts.items():
        longest = max(map(len, asked.labels[variant]))
        for number, before in enumerate(texts, 1):
            if len(before) + longest > context:
                raise InputError(
                    f"evaluate.label_variants: question {number} of those asked has {len(before) + longest} tokens "
                    f"({variant.family}: {variant.name}), the model's context {context}",
                    hint="ask for fewer `examples`, or take it out",
                    rule="variants-do-not-fit",
                )
    said = [f"label variants leave out {name}: the tokenizer does not tell its labels apart" for name in asked.left_out]
    if len(asked.questions) < FEW:
        said.append(f"label variants of {len(asked.questions)} questions: their intervals are wide")
    pairs = asked.pairs()
    counted = {"texts": len(pairs), "read": tokens_read(pairs), "answers": []}
    return {"questions": len(asked.questions), "asked": counted, **({"fallback": said} if said else {})}


def _asked(job: Job) -> _Asked:
    section = job.section("label_variants", LabelVariants)
    rows = read_questions(section.path, section.examples + section.rows, "evaluate.label_variants")
    examples, questions = rows[: section.examples], rows[section.examples :]
    if not questions:
        raise DataError(
            f"{len(rows)} questions, of which the first {section.examples} are examples: none is left to ask",
            file=section.path,
            hint="give more, or fewer `examples`",
            rule="data-no-rows",
        )
    encode = _encoder(job.inputs["policy"])
    most = max(len(one.choices) for one in questions)
    asked = _Asked(questions, {}, {}, [])
    for variant in variants(most, examples):
        texts = list(variant.prompts(examples, questions))
        labels = _labels(encode, texts[0], [variant.label(at) for at in range(most)])
        if not all(labels) or len(set(labels)) < most:
            asked.left_out.append(variant.name)
            continue
        asked.texts[variant] = [encode(text) for text in texts]
        asked.labels[variant] = labels
    return asked


def _labels(encode: Callable[[str], Ids], text: str, labels: Sequence[str]) -> list[Ids]:
    """The tokens that each label adds to a text: the same after every text, as all end alike. Empty where the label
    changes the text's own last tokens, so that it is not told from it."""
    before = encode(text)
    after = [encode(f"{text} {label}") for label in labels]
    return [ids[len(before) :] if ids[: len(before)] == before else () for ids in after]


def _encoder(policy: Path) -> Callable[[str], Ids]:
    """The ids of a text with the token by which the tokenizer begins one, and without one by which it may end one."""
    tokenizer: Any = AutoTokenizer.from_pretrained(policy)
    first = [tokenizer.bos_token_id] if tokenizer.encode("")[:1] == [tokenizer.bos_token_id] else []
    return lambda text: (*first, *tokenizer.encode(text, add_special_tokens=False))


def _likeliest(totals: Sequence[float]) -> int:
    return max(range(len(totals)), key=lambda at: totals[at])
