"""What scores an answer: reward functions of the user's, run in processes of their own; judges with a rubric; how
scores are combined."""

from posttrain.rewards.functions import POINTWISE, Reward, content_hash, load, with_timeout
from posttrain.rewards.golden_cases import wrong_cases
from posttrain.rewards.source import arguments

__all__ = ["POINTWISE", "Reward", "arguments", "content_hash", "load", "with_timeout", "wrong_cases"]
