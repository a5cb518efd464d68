"""The sections of a recipe as pydantic models, one module per concern.

Every key stands once, with its type, range, default and description. A section left out by `null` leaves its stage out.
`keys` says what of a section enters an artifact's key, `tree` and `problems` where in a YAML file a value stands and
what is wrong with it; `trl_fields` knows which of TRL's own fields a trained section may hold.
"""

from posttrain.config.annotate import Annotate, Rated
from posttrain.config.correction import Correction
from posttrain.config.engine import Engine
from posttrain.config.model import Lora, Model
from posttrain.config.prompts import Decontaminate, Prompts, PromptSet, by_round
from posttrain.config.push import Push
from posttrain.config.quality_classifier import QualityClassifier
from posttrain.config.rewards import JudgeModel, RewardEntry
from posttrain.config.sampling import Evaluate, Pairs, Preferences, Samples
from posttrain.config.search import Search
from posttrain.config.step_scores import StepScores
from posttrain.config.trained import Trained
from posttrain.config.training import Anneal, Balance, Dpo, RewardModel, Sft, Source
from posttrain.config.watch import Judge

__all__ = [
    "Anneal",
    "Annotate",
    "Balance",
    "Correction",
    "Decontaminate",
    "Dpo",
    "Engine",
    "Evaluate",
    "Judge",
    "JudgeModel",
    "Lora",
    "Model",
    "Pairs",
    "Preferences",
    "PromptSet",
    "Prompts",
    "Push",
    "QualityClassifier",
    "Rated",
    "RewardEntry",
    "RewardModel",
    "Samples",
    "Search",
    "Sft",
    "Source",
    "StepScores",
    "Trained",
    "by_round",
]
