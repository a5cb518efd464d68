"""The section of on-policy training: GRPO or RLOO on completions of the policy as it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config import trl_fields
from posttrain.config.section import Count, Tokens, complain
from posttrain.config.trained import Trained

RLOO = "online.rloo"  # the name of RLOOConfig's fields in `trl_fields.json`

_SAMPLES = "the built-in engine samples the completions"
_EACH_STEP = "each step samples anew, so that a training that is resumed gives the same bits"
_TABLE = "the completions are a table of the stage's artifact"


class Online(Trained):
    """On-policy training of the SFT model, by GRPO (Shao et al. 2024, arXiv 2402.03300) or RLOO (Ahmadian et al. 2024,
    arXiv 2402.14740): completions of the policy as it learns, scored by the recipe's rewards; plus GRPOConfig's or
    RLOOConfig's fields."""

    trainer, trl_config = "online", "GRPOConfig"
    refused: ClassVar = {
        **trl_fields.FIXED_REFERENCE,
        "num_generations*": "`group` is the number of completions of a prompt",
        "max_completion_length": "`max_new_tokens` is the length of the longest completion",
        "num_iterations": _EACH_STEP,
        "steps_per_generation": _EACH_STEP,
        "generation_batch_size": _EACH_STEP,
        "off_policy_mask_threshold": _EACH_STEP,
        "use_vllm": _SAMPLES,
        "vllm_*": _SAMPLES,
        "use_transformers_*": _SAMPLES,
        "transformers_*": _SAMPLES,
        "generation_kwargs": _SAMPLES,
        "cache_implementation": _SAMPLES,
        "top_k": _SAMPLES,
        "min_p": _SAMPLES,
        "repetition_penalty": _SAMPLES,
        "max_tool_calling_iterations": "there are no tools",
        "chat_template_kwargs": "prompts are rendered as in every stage",
        "shuffle_dataset": "prompts are shuffled by the recipe's seed",
        "reward_weights": "`reward` has the weights",
        "multi_objective_aggregation": "a completion's score is the weighted mean of its rewards, as in `scores`",
        "log_completions*": _TABLE,
        "log_multimodal": _TABLE,
        "num_completions_to_print": _TABLE,
        "log_unique_prompts": _TABLE,
        "ds3_gather_for_generation": "DeepSpeed is not used",
    }

    made_with = ("algorithm", "group")
    alone = True
    copies = 2  # one that samples, and its packed weights

    algorithm: Literal["grpo", "rloo"] = "grpo"
    """GRPO compares a completion with the mean of its group, RLOO with the mean of the others in it."""
    group: int = Field(default=8, ge=2, le=10_000)
    """Completions of each prompt; the rows of an optimizer step are a multiple of it."""
    prompts: Count | None = None
    """Most prompts, of those of the round's samples; null: all."""
    pass_rate: list[Annotated[float, Field(ge=0, le=1)]] = Field(default=[0.01, 0.99], min_length=2, max_length=2)
    """Only prompts whose samples are right as often as this, from the first to the second: where all are right or
    none is, there is nothing to learn from."""
    max_new_tokens: Tokens = 256
    """Longest completion, in tokens. Default: samples.max_new_tokens."""
    without_prompts: Literal["stop", "skip"] = "stop"
    """What is done in a round with too few such prompts for one step: stop with an error, or leave the policy as it
    is."""

    @model_validator(mode="after")
    def _fits(self) -> Online:
        if self.batch % self.group:
            complain(
                ("group",),
                f"an optimizer step has {self.batch} completions (per_device_train_batch_size × "
                f"gradient_accumulation_steps), which groups of {self.group} do not divide",
                "make it a multiple of `group`",
                rule="recipe-values-clash",
            )
        if self.pass_rate[0] > self.pass_rate[1]:
            complain(("pass_rate",), "the first bound is above the second", rule="recipe-values-clash")
        for name in self.trl:
            if name not in trl_fields.fields(self.trl_name):
                complain((name,), f"{self.algorithm} has no such option", "see `algorithm`", rule="recipe-refused-key")
        return self

    @property
    def batch(self) -> int:
        """Completions of an optimizer step."""
        return self.trl["per_device_train_batch_size"] * self.trl["gradient_accumulation_steps"]

    @classmethod
    def known_fields(cls) -> Mapping[str, dict[str, Any]]:
        return {**trl_fields.fields(RLOO), **trl_fields.fields(cls.trainer)}

    @property
    def trl_name(self) -> str:
        return RLOO if self.algorithm == "rloo" else self.trainer

    @property
    def trl_class(self) -> str:
        return "RLOOConfig" if self.algorithm == "rloo" else self.trl_config

    @property
    def fewest(self) -> int:
        return self.group

    @property
    def own_fields(self) -> dict[str, Any]:
        return {"num_generations": self.group, "max_completion_length": self.max_new_tokens}

    @classmethod
    def _unknown(cls, key: str, value: Any, known: list[str]) -> None:
        of_rloo = key in trl_fields.fields(RLOO) and key not in trl_fields.fields(cls.trainer)
        config = RLOO if of_rloo else cls.trainer
        wrong = trl_fields.problem(config, key, value, tuple(known), cls.refused)
        if wrong:
            complain((key,), wrong.message.replace(f"'{RLOO}'", f"'{cls.trainer}'"), rule=wrong.rule)
