"""Which kinds of reward there are: a file each, whose ending in the recipe's `use` says which kind it is.

The reward model is none of them. It has no file and no identity, since a stage of the run makes it; it reads token ids,
all answers to a prompt at once; and its logits mean nothing by themselves: see `scoring.model_rewards` and `combine`.
"""

from __future__ import annotations

from collections.abc import Callable

from posttrain.config import RewardEntry
from posttrain.rewards import functions, judge_reward
from posttrain.rewards.protocol import DEFAULT, RewardFunction, Runtime

KINDS: dict[str, Callable[[RewardEntry, Runtime], RewardFunction]] = {
    ".py": functions.load,
    ".md": judge_reward.load,
}


def load(entry: RewardEntry, runtime: Runtime = DEFAULT) -> RewardFunction:
    """The reward of a recipe's entry. Its file is read, but nothing is run and no judge is called.

    Raises RewardError when the file is not there, or not what its kind needs.
    """
    kind = next((load for ending, load in KINDS.items() if entry.use.endswith(ending)), functions.load)
    return kind(entry, runtime)
