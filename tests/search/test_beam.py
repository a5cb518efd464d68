"""Beam search: which beginnings go on."""

from __future__ import annotations

from posttrain.search.beam import Beam
from posttrain.search.drawn import Drawn

A, B, C = (1,), (2,), (3,)


def test_the_best_beginnings_by_likelihood_and_score_go_on() -> None:
    beam = Beam(width=2, room=100)
    assert beam.asks() == [()]
    beam.take(
        (), [Drawn(A, score=0.1, logprob=-1.0), Drawn(B, score=0.5, logprob=-2.0), Drawn(C, score=0.3, logprob=-0.1)]
    )
    assert beam.asks() == [C, A]  # 0.2 and −0.9; B: −1.5
    beam.take(C, [Drawn(A, score=0.2, logprob=-1.0), Drawn(C, score=-0.5, logprob=-1.0)])
    beam.take(A, [Drawn(B, score=0.9, logprob=-1.0), Drawn(C, score=-1.0, logprob=-1.0)])
    assert beam.asks() == [(3, 1), (1, 2)]  # −0.6 and −1.0 in all; −1.3 and −2.9 do not go on


def test_without_scores_the_likeliest_go_on() -> None:
    beam = Beam(width=2, room=100)
    beam.asks()
    beam.take((), [Drawn(A, logprob=-1.0), Drawn(B, logprob=-2.0), Drawn(C, logprob=-0.1)])
    assert beam.asks() == [C, A]


def test_the_same_step_goes_on_once_and_ended_or_full_ones_do_not() -> None:
    beam = Beam(width=3, room=2)
    beam.asks()
    beam.take((), [Drawn(A, logprob=-1.0), Drawn(A, logprob=-1.0), Drawn(B, ended=True, value=0.0), Drawn((3, 3))])
    assert beam.asks() == [A]


def test_it_begins_anew_where_all_have_ended() -> None:
    beam = Beam(width=2, room=100)
    beam.asks()
    beam.take((), [Drawn(A, ended=True, value=0.0), Drawn(B, ended=True, value=0.0)])
    assert beam.asks() == [()]
