"""Filters by a judge: any model, with a rubric from `reward/`. See docs/judges.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from posttrain.config.keys import KeyedByName, name_of
from posttrain.config.rewards import JudgeModel
from posttrain.config.section import MOST, complain
from posttrain.errors import RecipeError
from posttrain.filters.base import Decide, Filter, FilterContext, Scope, Verdict, dropped
from posttrain.filters.rows import Rows
from posttrain.filters.top_share import TopShare

On = Literal["both", "prompt", "answer"]


class Judged(Filter):
    """Drops rows that a judge gives less than `minimum`, and those to which it gives no score.

    With `reward/guard.md` it is a guard of safety. Figure: the judge's score; none for `no score`. Texts that are too
    long for the judge (`judge.max_chars`), that it refuses, or about which it gave no answer of the asked form, have
    none; `no_score: keep` keeps them.
    """

    use: Literal["judge"] = "judge"
    rubric: Annotated[str, KeyedByName()] = Field(
        description="A shipped rubric (quality.md, guard.md, difficulty.md), or a path with a slash."
    )
    judge: JudgeModel = Field(description="Who judges: see docs/judges.md.")
    minimum: int | None = Field(
        default=None, ge=-MOST, le=MOST, description="Lowest score kept; null: the rubric's highest."
    )
    on: On = Field(default="both", description="What the judge is shown.")
    no_score: Literal["drop", "keep"] = Field(default="drop", description="What becomes of rows without a score.")

    def external_hashes(self) -> dict[str, str]:
        return _identity(self.rubric, self.judge)

    def start(self, context: FilterContext) -> Decide:
        score, minimum = _scorer(self.rubric, self.judge, self.minimum, context)

        def verdict(found: int | None) -> Verdict | None:
            if found is None:
                return Verdict("no score", None) if self.no_score == "drop" else None
            return Verdict("judged too low", found) if found < minimum else None

        return lambda rows: dropped(map(verdict, score(rows, range(len(rows)), self.on)))


class Quality(Filter):
    """Keeps rows whose reward is in the top share, or to which a judge gives the maximum (Llama 3, section 4.2.3).

    `take: either` is the paper's union, `both` the intersection. The reward is `score`, normalised by prompt and round
    (see `top_share`); the share is of all rows that there were before any filter, in a first pass over their scores.
    The judge is asked only about rows for which it makes a difference. Figures: `below the top share` and `neither
    rewarded nor judged high` the normalised reward, `judged too low` the judge's score, `no score` none.
    """

    scope: ClassVar[Scope] = "whole"
    use: Literal["quality"] = "quality"
    share: float | None = Field(
        default=0.25, gt=0, lt=1, description="The share of the rows with the best rewards; null: by the judge alone."
    )
    rubric: Annotated[str, KeyedByName()] = Field(
        default="quality.md", description="A shipped rubric, or a path with a slash."
    )
    judge: JudgeModel | None = Field(default=None, description="Who judges: see docs/judges.md; null: by reward alone.")
    minimum: int | None = Field(
        default=None,
        ge=-MOST,
        le=MOST,
        description="The judge's score from which a row is kept; null: the rubric's highest.",
    )
    take: Literal["either", "both"] = Field(
        default="either", description="Kept is what the reward or the judge puts high, or only what both do."
    )

    @model_validator(mode="after")
    def _somebody_decides(self) -> Self:
        if self.share is None and self.judge is None:
            complain((), "neither `share` nor `judge` is given", "give one of them, or both", rule="recipe-needs-key")
        return self

    def external_hashes(self) -> dict[str, str]:
        return _identity(self.rubric, self.judge) if self.judge else {}

    def lacks(self, rows: Rows) -> str | None:
        return None if self.share is None or rows.has("score") else "a column 'score', or `share: null` and a `judge`"

    def start(self, context: FilterContext) -> Decide:
        top = None if self.share is None else TopShare(self.share, context.corpus)
        score, minimum = _scorer(self.rubric, self.judge, self.minimum, context) if self.judge else (_nobody, 0)
        either = self.take == "either" or self.judge is None

        def verdict(rewarded: bool, figure: float | None, judged: int | None) -> Verdict | None:
            high = judged is not None and judged >= minimum
            if (rewarded or high) if either else (rewarded and high):
                return None
            if top and self.judge and either:
                return Verdict("neither rewarded nor judged high", figure)
            if top and not rewarded:
                return _too_low("below the top share", figure)
            return _too_low("judged too low", judged)

        def decide(rows: Rows) -> dict[int, Verdict]:
            figures = top.figures(rows) if top else [None] * len(rows)
            best = top.among_the_best(rows) if top else [not either] * len(rows)
            # Of the best nothing more need be known for a union, of the others nothing more for an intersection.
            undecided = [i for i in range(len(rows)) if best[i] != either]
            judged = dict(zip(undecided, score(rows, undecided, "both"), strict=True))
            return dropped(map(verdict, best, figures, map(judged.get, range(len(rows)))))

        return decide


def _too_low(reason: str, figure: float | None) -> Verdict:
    return Verdict("no score" if figure is None else reason, figure)


# The scores of those rows whose positions are given, on the rubric's scale; None: no score.
Score = Callable[[Rows, Sequence[int], On], list[int | None]]


def _nobody(rows: Rows, positions: Sequence[int], on: On) -> list[int | None]:
    return [None] * len(positions)


def _scorer(rubric: str, model: JudgeModel, minimum: int | None, context: FilterContext) -> tuple[Score, int]:
    """The scoring function of the judge, and the lowest score to keep; `minimum` None: the rubric's highest.

    Raises:
        RecipeError: `minimum` is not on the rubric's scale.
        EngineError: the judge does not work.
    """
    from posttrain.rewards import rubric as rubrics
    from posttrain.rewards.judge import load  # here, since the recipe is checked against this module's keys
    from posttrain.rewards.judge_prompt import spoken

    judge = load(rubrics.load_scoring(rubric), model, context.scratch)
    scale = judge.rubric
    if minimum is not None and not scale.lowest < minimum <= scale.highest:
        raise RecipeError(
            f"minimum is {minimum}, and {scale.name} gives {scale.lowest} to {scale.highest}",
            hint=f"take one from {scale.lowest + 1} to {scale.highest}: from there on rows are kept",
            rule="filter-minimum",
        )
    judge.probe()

    def score(rows: Rows, positions: Sequence[int], on: On) -> list[int | None]:
        prompts, answers = rows.said
        return judge.scores(
            [
                (None if on == "answer" else spoken(prompts[i]), None if on == "prompt" else spoken(answers[i]))
                for i in positions
            ]
        )

    return score, scale.highest if minimum is None else minimum


def _identity(rubric: str, model: JudgeModel) -> dict[str, str]:
    from posttrain.rewards import rubric as rubrics
    from posttrain.rewards.judge import identity

    return {name_of(rubric): identity(rubrics.load_scoring(rubric), model)}
