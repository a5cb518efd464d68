"""Tree search: selection, values and closing against numbers computed by hand on trees of a few nodes."""

from __future__ import annotations

import math

import pytest

from posttrain.search.drawn import Drawn
from posttrain.search.tree import Tree

A, B, C = (1,), (2,), (3,)
REST = (9, 9)


def drawn(step: tuple[int, ...], value: float | None = 0.0, score: float | None = None, ends: bool = False) -> Drawn:
    """A whole answer that begins with this step; `ends`: with which it is over."""
    return Drawn(step, () if ends else REST, True, value, score)


def tree(exploration: float = 1.0, width: int = 4, room: int = 100) -> Tree:
    return Tree(width, exploration, room)


def test_the_first_answers_are_sampled_from_the_prompt_and_their_first_steps_are_its_children() -> None:
    one = tree()
    assert one.asks() == [()]
    one.take((), [drawn(A), drawn(B), drawn(A, 1.0), drawn(C)])
    assert [(step, child.visits, child.total) for step, child in one.root.children.items()] == [
        (A, 2, 1.0),
        (B, 1, 0.0),
        (C, 1, 0.0),
    ]
    assert (one.root.visits, one.root.total, one.root.mean) == (4, 1.0, 0.25)


def test_a_child_is_selected_by_puct() -> None:
    one = tree(exploration=0.8)
    one.asks()
    one.take((), [drawn(A, 0.5), drawn(A, 0.0), drawn(B, 0.2), drawn(C, 0.0)])
    # P is the share of the draws: 1/2, 1/4, 1/4; √N = 2
    assert one.promise(one.root) == pytest.approx(
        {A: 0.25 + 0.8 * 0.5 * 2 / 3, B: 0.2 + 0.8 * 0.25 * 2 / 2, C: 0.0 + 0.8 * 0.25 * 2 / 2}
    )
    assert one.asks() == [A]


def test_p_is_the_softmax_of_the_scores_of_all_that_was_drawn() -> None:
    one = tree()
    one.asks()
    one.take((), [drawn(A, score=0.0), drawn(A, score=0.0), drawn(A, score=0.0), drawn(B, score=1.0)])
    total = 3 + math.e
    assert one.root.priors() == pytest.approx({A: 3 / total, B: math.e / total})
    # A: 0.525 · 2 / 4 = 0.262; B: 0.475 · 2 / 2 = 0.475
    assert one.promise(one.root) == pytest.approx({A: 3 / total * 2 / 4, B: math.e / total * 2 / 2})
    assert one.asks() == [B]


def test_values_are_added_to_every_node_above() -> None:
    one = tree()
    one.asks()
    one.take((), [drawn(A, 1.0), drawn(A), drawn(A), drawn(A)])
    assert one.asks() == [A]
    one.take(A, [drawn(B, 0.5), drawn(B, 0.5), drawn(C, 0.0), drawn(C, 0.0)])
    of_a = one.root.children[A]
    assert (one.root.visits, one.root.total) == (8, 2.0)
    assert (of_a.visits, of_a.total, of_a.drawn) == (8, 2.0, 4)
    assert {step: (child.visits, child.total) for step, child in of_a.children.items()} == {B: (2, 1.0), C: (2, 0.0)}
    assert of_a.children[B].path == (1, 2)


def test_nodes_are_left_once_nothing_can_be_sampled_from_them_and_the_root_never() -> None:
    one = tree()
    one.asks()
    one.take((), [drawn(A), drawn(A), drawn(A), drawn(B, ends=True)])
    assert one.root.children[B].closed
    assert one.asks() == [A]
    one.take(A, [drawn(C, ends=True)] * 4)
    assert one.root.children[A].closed
    assert one.asks() == [()]
    one.take((), [drawn(C)] * 4)
    assert one.asks() == [C]


def test_an_answer_that_fills_the_room_leaves_nothing_to_sample() -> None:
    one = tree(room=2)
    one.asks()
    one.take((), [Drawn((1, 1), (), False), *[drawn(A)] * 3])
    assert one.root.children[1, 1].closed
    assert one.asks() == [A]


def test_a_node_that_is_visited_often_gets_more_children() -> None:
    one = tree(width=2)
    one.asks()
    one.take((), [drawn(A), drawn(B)])
    asked = []
    for number in range(3):
        (path,) = one.asks()
        asked.append(path)
        one.take(path, [drawn((10 + number,)), drawn((20 + number,))])
    # the root was drawn from twice; after 8 visits, four times as many as draws of one time, it may be so again
    assert asked[0] in (A, B) and () not in asked
    assert one.root.visits == 8 and one.asks() == [()]


def test_an_answer_without_a_value_counts_as_wrong() -> None:
    one = tree()
    one.asks()
    one.take((), [drawn(A, None), drawn(A, 1.0)])
    assert one.root.children[A].mean == 0.5
