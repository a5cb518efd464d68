"""A recipe: what a run is made from.

Every key stands once, with its type, range, default and description, in `sections` and `trained`. A section left out by
`null` leaves its stage out. `reader` reads YAML with line numbers; `trl_fields` knows which of TRL's own fields a
trained section may hold.
"""

from posttrain.recipe.annotate import Annotate, Rated
from posttrain.recipe.engine import Compute, Engine, Server
from posttrain.recipe.files import load
from posttrain.recipe.judge_model import JudgeModel
from posttrain.recipe.learned import QualityClassifier
from posttrain.recipe.push import Push
from posttrain.recipe.sections import (
    Decontaminate,
    Difficulty,
    Evaluate,
    Levels,
    Lora,
    Model,
    Pairs,
    Preferences,
    Prompts,
    PromptSet,
    RewardEntry,
    Samples,
    by_round,
)
from posttrain.recipe.trained import Anneal, Balance, Dpo, Mix, RewardModel, Sft, Source, Trained
from posttrain.recipe.watch import Judge, Watch
from posttrain.recipe.whole import Recipe

__all__ = [
    "Anneal",
    "Annotate",
    "Balance",
    "Compute",
    "Decontaminate",
    "Difficulty",
    "Dpo",
    "Engine",
    "Evaluate",
    "Judge",
    "JudgeModel",
    "Levels",
    "Lora",
    "Mix",
    "Model",
    "Pairs",
    "Preferences",
    "PromptSet",
    "Prompts",
    "Push",
    "QualityClassifier",
    "Rated",
    "Recipe",
    "RewardEntry",
    "RewardModel",
    "Samples",
    "Server",
    "Sft",
    "Source",
    "Trained",
    "Watch",
    "by_round",
    "load",
]
