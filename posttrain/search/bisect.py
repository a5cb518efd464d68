"""Where an answer goes wrong, by binary search over its steps. Pure."""

from __future__ import annotations


class Bisect:
    """The first wrong step of a wrong answer of `steps` steps.

    A beginning is good if any of K answers that go on from it is right (OmegaPRM, Luo et al. 2024, arXiv 2406.06592).
    The empty one counts as good and the whole answer as bad, so ⌈log2(steps)⌉ beginnings are looked at. That takes for
    granted that from a bad beginning nothing leads back to the right answer.
    """

    def __init__(self, steps: int) -> None:
        self.good, self.bad = 0, steps  # beginnings of so many steps

    @property
    def probe(self) -> int | None:
        """The beginning to look at next, in steps; None once the step is found."""
        return (self.good + self.bad) // 2 if self.bad - self.good > 1 else None

    def take(self, good: bool) -> None:
        """Whether that one was good."""
        assert self.probe is not None
        if good:
            self.good = self.probe
        else:
            self.bad = self.probe

    @property
    def first_wrong(self) -> int:
        """The step, from 0, once it is found."""
        return self.good
