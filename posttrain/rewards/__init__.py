"""Reward functions of the user's: found and checked here, run in processes of their own."""

from posttrain.rewards.functions import POINTWISE, Reward, content_hash, load, patient
from posttrain.rewards.golden_cases import wrong_cases
from posttrain.rewards.source import arguments

__all__ = ["POINTWISE", "Reward", "arguments", "content_hash", "load", "patient", "wrong_cases"]
