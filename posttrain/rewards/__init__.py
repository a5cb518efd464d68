"""What scores an answer: reward functions of the user's, run in processes of their own; judges with a rubric; how
scores are combined."""

from posttrain.rewards.kinds import load
from posttrain.rewards.protocol import RewardFunction, Runtime

__all__ = ["RewardFunction", "Runtime", "load"]
