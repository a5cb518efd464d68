"""Monte Carlo tree search over the steps of an answer. Pure.

A node is the beginning of an answer, up to the end of a step. Each simulation goes down from the root, to the child
with the highest Q + c·P·√N / (1 + n) (PUCT: Rosin 2011, as in AlphaZero, Silver et al. 2017), samples whole answers
from where it comes out, makes their first steps children of it, and adds the checker's values to all nodes above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from posttrain.search.drawn import Drawn, Path


class Node:
    """`visits`: answers that went through it, and `total`: the sum of their values; `drawn`: those sampled from it;
    `taken`: how many of its parent's draws took it. `closed`: nothing is left to sample from it."""

    def __init__(self, path: Path, parent: Node | None = None, score: float | None = None) -> None:
        self.path, self.parent, self.score = path, parent, score
        self.children: dict[Path, Node] = {}
        self.visits = self.drawn = self.taken = 0
        self.total, self.closed = 0.0, False

    @property
    def mean(self) -> float:
        """Q: the mean value of the answers through it."""
        return self.total / self.visits if self.visits else 0.0

    def priors(self) -> dict[Path, float]:
        """P of each child, by its step: the softmax of the scores of all draws, in which a step counts as often as it
        was taken; so without scores the share of draws that took it. Where not every child has a score, none counts."""
        scores = [child.score for child in self.children.values()]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            known = [0.0] * len(scores)
        highest = max(known, default=0.0)
        powers = [
            child.taken * math.exp(score - highest) for child, score in zip(self.children.values(), known, strict=True)
        ]
        return {step: power / sum(powers) for step, power in zip(self.children, powers, strict=True)}


class Tree:
    """The search for an answer to one prompt. `room`: the most tokens of an answer."""

    whole = True

    def __init__(self, width: int, exploration: float, room: int) -> None:
        self.width, self.exploration, self.room = width, exploration, room
        self.root = Node(())
        self._asked = self.root

    def asks(self) -> list[Path]:
        self._asked = self.select()
        return [self._asked.path]

    def take(self, beginning: Path, drawn: Sequence[Drawn]) -> None:
        node = self._asked
        node.drawn += len(drawn)
        for one in drawn:
            if not one.step:  # it ended at once: nothing to go on from
                _back_up(node, one.value or 0.0)
                continue
            child = node.children.get(one.step)
            if child is None:
                child = node.children[one.step] = Node((*node.path, *one.step), node, one.score)
                child.closed = (one.ended and not one.rest) or len(child.path) >= self.room
            child.taken += 1
            _back_up(child, one.value or 0.0)
        _close(node)

    def select(self) -> Node:
        """The node to sample from: down the open children with the highest PUCT, to one that has no open child or has
        been visited so often that more of its next steps should be known."""
        node = self.root
        while True:
            children = {step: child for step, child in node.children.items() if not child.closed}
            if not children or node.drawn < self.allowed(node):
                return node
            promise = self.promise(node)
            node = children[max(children, key=promise.__getitem__)]

    def promise(self, node: Node) -> dict[Path, float]:
        """Q + c·P·√N / (1 + n) of each child, by its step."""
        priors, root = node.priors(), math.sqrt(node.visits)
        return {
            step: child.mean + self.exploration * priors[step] * root / (1 + child.visits)
            for step, child in node.children.items()
        }

    def allowed(self, node: Node) -> int:
        """How many answers may be sampled from a node before its children are preferred: as the square root of its
        visits (progressive widening, Coulom 2007)."""
        return self.width * max(1, math.isqrt(node.visits // self.width))


def _back_up(node: Node | None, value: float) -> None:
    while node is not None:
        node.visits += 1
        node.total += value
        node = node.parent


def _close(node: Node) -> None:
    """A node all of whose children are closed is so too, and perhaps those above it; the root is sampled again."""
    while node.parent is not None and all(child.closed for child in node.children.values()):
        node.closed = True
        node = node.parent
