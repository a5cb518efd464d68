"""Judges: any model that scores text by a rubric (`reward/NAME.md`), its answer read strictly. See docs/judges.md.

judge = judging.load(rubric.load_scoring("quality.md"), JudgeModel(url="http://localhost:8000/v1", model="big"))
judge.scores([("What is 2 + 3?", "5")])  # [5], or [None] where it gave no answer of the asked form
"""

from posttrain.judging.judge import Judge, identity, load
from posttrain.judging.ledger import LEDGER, Ledger, told
from posttrain.judging.reward import JudgeReward, load_reward

__all__ = ["LEDGER", "Judge", "JudgeReward", "Ledger", "identity", "load", "load_reward", "told"]
