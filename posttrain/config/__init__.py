"""The sections of a recipe as pydantic models, one module per concern.

Every key stands once, with its type, range, default and description. A section left out by `null` leaves its stage out.
`keys` says what of a section enters an artifact's key, `tree` and `problems` where in a YAML file a value stands and
what is wrong with it; `trl_fields` knows which of TRL's own fields a trained section may hold.
"""

from posttrain.config.annotate import Annotate, Rated
from posttrain.config.engine import Compute, Engine, Server
from posttrain.config.model import Lora, Model
from posttrain.config.prompts import Decontaminate, Prompts, PromptSet, by_round
from posttrain.config.push import Push
from posttrain.config.quality_classifier import QualityClassifier
from posttrain.config.rewards import JudgeModel, RewardEntry
from posttrain.config.sampling import Difficulty, Evaluate, Levels, Pairs, Preferences, Samples
from posttrain.config.training import Anneal, Balance, Dpo, Mix, RewardModel, Sft, Source, Trained
from posttrain.config.watch import Judge, Watch

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
    "RewardEntry",
    "RewardModel",
    "Samples",
    "Server",
    "Sft",
    "Source",
    "Trained",
    "Watch",
    "by_round",
]
