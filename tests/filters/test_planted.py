"""What the rules find in planted corpora, and that they leave clean text alone."""

from __future__ import annotations

from typing import Any

import pytest
from support.planted import CORPORA, Corpus, caught, measure
from support.planted_copies import COPIES, ON_JUDGES, fooled

# Where a filter says what it does not see, some of that is planted: so it may miss that much.
LEAST_RECALL = {
    "repetition": 0.8,  # a loop after a long answer is a small share of it: that is what `loop` is for
    "truncated": 0.4,  # most cuts leave no sign
    "truncated: prose": 0.9,  # some cuts are after a whole sentence
    "format: role confusion": 0.75,
    "residue: places, template code": 0.9,
    "unsafe-words": 0.65,
    "refusals": 0.85,
    "apologies": 0.85,
    "language": 0.9,
    "pii: personal data": 0.8,
    "pii: keys and passwords": 0.85,
    "semantic-duplicates: order, other words": 0.85,  # words alone do not tell that other words mean the same
}
LEAST_PRECISION = {"truncated: prose": 0.8}  # two of the clean ones have no full stop


@pytest.mark.parametrize("corpus", [*CORPORA, *COPIES], ids=lambda corpus: corpus.name)
def test_planted_faults_are_found_and_clean_rows_left_alone(corpus: Corpus):
    figure = measure(corpus)
    assert figure.planted >= 10 and figure.clean >= 30
    assert figure.recall >= LEAST_RECALL.get(corpus.name, 0.99), _lost(corpus, missed=True)
    assert figure.precision >= LEAST_PRECISION.get(corpus.name, 0.98), _lost(corpus, missed=False)


@pytest.mark.parametrize("planted", ON_JUDGES, ids=lambda planted: planted[0])
def test_no_answer_that_acts_on_a_judge_is_kept(planted: Any):
    figure = fooled(*planted)
    assert figure.planted >= 14 and figure.clean >= 10
    assert (figure.recall, figure.precision) == (1, 1)


def _lost(corpus: Corpus, missed: bool) -> list[str]:
    taken = caught(corpus)
    wrong = [i for i, (planted, _) in enumerate(corpus.rows) if planted is missed and (i in taken) is not missed]
    return [corpus.rows[i][1]["completion"] for i in wrong]
