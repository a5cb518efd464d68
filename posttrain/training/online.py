"""On-policy training: TRL's GRPO and RLOO trainers on completions that our engine samples from the policy as it is.

GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1): the advantage of a completion is its score less the mean of its
group, over the group's standard deviation. RLOO (Ahmadian et al. 2024, arXiv 2402.14740, equation 9): its score less
the mean of the others in the group, after a penalty of β times the log ratio to the reference. Both maximise PPO's
clipped objective. As each step samples anew, the ratio in it is 1, and nothing is clipped.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from peft import PeftModel
from torch.utils.data import Sampler
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import RepeatSampler

from posttrain.data.tables import SCORED_ANSWERS
from posttrain.engines import Engine, Request, SamplingParams, completion_seed, engine_on
from posttrain.engines.load import prepare
from posttrain.evaluation.statistics import known_mean
from posttrain.rollouts import answer_row
from posttrain.seeds import derive_seed
from posttrain.storage.pieces import Pieces
from posttrain.system import device
from posttrain.training.answers import head_at_answers
from posttrain.training.groups import ROOM, as_answers
from posttrain.training.packing import answer_log_probs, refusal
from posttrain.training.trainers import TokenizedRows

ROLLOUTS = SCORED_ANSWERS.append(pa.field("score", pa.float64())).append(pa.field("step", pa.int32()))
# For the scores of completions, rows of ANSWERS: the rewards of each by name, and what they come to; None: unknown.
Scored = tuple[Mapping[str, float | None], float | None]
Score = Callable[[Sequence[Mapping[str, Any]]], Sequence[Scored]]


class SampledByEngine(TokenizedRows):
    """What the two trainers share. Rows: `prompt_id`, `prompt` (messages), `prompt_ids` (tokens), `columns` (JSON).

    The completions of a step follow from its number, the prompt and the seed alone, and so do those of a training that
    is resumed there. All of them are kept as tables of ROLLOUTS, one a step.
    """

    columns = ("prompt_id", "prompt", "prompt_ids", "columns")

    def __init__(self, *, score: Score, pieces: Pieces, dtype: str, seed: int, **options: Any) -> None:
        """`score`: of the completions, those of a prompt next to each other; `pieces`: where the tables are kept;
        `dtype`: in which the engine computes; `seed`: of the completions."""
        self._score, self._pieces, self._dtype, self._seed = score, pieces, dtype, seed
        self._asked: Sequence[Mapping[str, Any]] = ()
        self._scores: list[float | None] = []
        self.fallback: str | None = None
        self._packed, self._attached = True, False
        args = options["args"]
        # As many as there are micro-batches in a step, whatever size fits into memory.
        args.steps_per_generation = args.gradient_accumulation_steps
        args.generation_batch_size = args.per_device_train_batch_size * args.steps_per_generation
        super().__init__(reward_funcs=[self.score], **options)  # pyright: ignore[reportCallIssue] # the trainer's

    def score(self, prompts: Sequence[Any], **_: Any) -> list[float | None]:
        """The scores of the completions that were sampled last, in their order."""
        return self._scores

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        """TRL's, whose order of an epoch follows from the epoch: a training that is resumed in the second one would see
        the first one's order again."""
        trainer: Any = self
        groups = trainer.args.generation_batch_size // trainer.num_generations
        return _ByEpoch(
            trainer.train_dataset if dataset is None else dataset,
            mini_repeat_count=trainer.num_generations,
            batch_size=groups,
            repeat_count=trainer.args.steps_per_generation,
            seed=trainer.args.seed,
        )

    def _generate_and_score_completions(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self._asked = inputs
        return super()._generate_and_score_completions(inputs)  # pyright: ignore[reportAttributeAccessIssue]

    def sampled(self) -> list[list[int]]:
        """Completions of the rows that are asked for, those that ended with their end token, scored and kept."""
        trainer: Any = self
        step, end = trainer.state.global_step, trainer.processing_class.eos_token_id
        engine = self._engine()
        if engine.fallback:
            self.fallback = f"answers are sampled one by one: {engine.fallback}"
        seed = derive_seed(self._seed, "rollouts", step)
        groups = [list(group) for _, group in itertools.groupby(self._asked, key=lambda row: row["prompt_id"])]
        requests = [
            Request(
                tuple(group[0]["prompt_ids"]),
                tuple(completion_seed(seed, group[0]["prompt_id"], at) for at in range(len(group))),
            )
            for group in groups
        ]
        params = SamplingParams(trainer.args.temperature, trainer.args.max_completion_length, trainer.args.top_p)
        rows = [
            answer_row(row["prompt_id"], row, one, "", at)
            for group, found in zip(groups, engine.generate(requests, params), strict=True)
            for at, (row, one) in enumerate(zip(group, found, strict=True))
        ]
        scored = self._score(rows)
        self._scores = [score for _, score in scored]
        kept = [
            {**row, "rewards": json.dumps(rewards), "score": score, "step": step}
            for row, (rewards, score) in zip(rows, scored, strict=True)
        ]
        name = name_of(step)
        if self._pieces.find(name) is None:
            self._pieces.keep(name, pa.Table.from_pylist(kept, schema=ROLLOUTS))
        return [[*row["tokens"], *[end] * (row["finish"] == "stop")] for row in rows]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *_: Any,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's, with a prompt computed once for several of its completions, and the head at these alone.

        input_ids, attention_mask (B, P + A): prompts padded on the left, completions on the right, A = logits_to_keep.
        Log-probs and entropies (B, A), zero at padding, and the loss that balances experts.
        """
        trainer: Any = self
        self._attach()
        pad, eager = trainer.processing_class.pad_token_id, trainer.model.config._attn_implementation == "eager"
        order, asked = as_answers(input_ids, attention_mask.bool(), logits_to_keep, pad, self._packed, eager)
        labels = torch.ones((len(order), 1 + logits_to_keep), dtype=torch.long, device=input_ids.device)
        more = {"output_router_logits": True} if compute_aux_loss else {}
        with trainer.accelerator.autocast():
            found = model(labels=labels, answers=asked, fused_lm_head=True, **more)
        back = order.argsort()
        entropy = found.entropy[back] if compute_entropy else None
        return found.log_probs[back], entropy, found.aux_loss if compute_aux_loss else None

    def _attach(self) -> None:
        """Before the first batch: looks whether the model supports packed rows; the head at completions alone."""
        if self._attached:
            return
        self._attached = True
        trainer: Any = self
        model, pad = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class.pad_token_id
        eager = model.config._attn_implementation == "eager"
        forward = {"output_router_logits": True} if trainer.aux_loss_enabled else {}
        prompt = max(map(len, trainer.train_dataset["prompt_ids"]))
        longest = max(prompt + trainer.args.max_completion_length, (1 + ROOM) * prompt)
        measured = functools.partial(answer_log_probs, model, pad, additive=eager, **forward)
        why = refusal(model, longest, measured)
        if why:
            self._packed, self.fallback = False, why
        for one in (trainer.model, trainer.ref_model):
            if one is not None:
                head_at_answers(trainer.accelerator.unwrap_model(one))

    def _engine(self) -> Engine:
        """The engine on a copy of the policy as it is now, its adapter merged in."""
        trainer: Any = self
        policy = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model))
        if isinstance(policy, PeftModel):
            policy = policy.merge_and_unload()
        policy.__dict__.pop("forward", None)  # that of the training, which would run the original
        return engine_on(prepare(policy, trainer.processing_class, self._dtype, device()))


class _ByEpoch(RepeatSampler):
    """`set_epoch` is called by accelerate as each epoch begins."""

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(derive_seed(self.seed or 0, "epoch", epoch))


class EngineGRPOTrainer(SampledByEngine, GRPOTrainer):
    """TRL's GRPO trainer, by the door that it has for completions of others."""

    def __init__(self, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(rollout_func=self._rolled_out, **options)

    def _rolled_out(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [list(row["prompt_ids"]) for row in self._asked],
            "completion_ids": self.sampled(),
            "logprobs": None,
        }


class EngineRLOOTrainer(SampledByEngine, RLOOTrainer):
    """TRL's RLOO trainer, which has no such door: what it would sample itself is replaced."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(row["prompt_ids"]) for row in self._asked], None, {}

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        return self.sampled()


TRAINERS = {"grpo": EngineGRPOTrainer, "rloo": EngineRLOOTrainer}


def name_of(step: int) -> str:
    """The name of the piece with a step's completions."""
    return f"step-{step:06}"


def curve(rollouts: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """By step: the mean `score`, the mean `length` in tokens, the share that is `unfinished`, the `entropy` (mean of
    −log p of the sampled tokens, in nats) and the share of groups whose scores are all `equal`. rollouts: rows of
    ROLLOUTS, those of a step and a prompt next to each other."""
    found: dict[str, list[float | None]] = {name: [] for name in ("score", "length", "unfinished", "entropy", "equal")}
    for _, of_step in itertools.groupby(rollouts, key=lambda row: row["step"]):
        rows = list(of_step)
        groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row["prompt_id"])]
        tokens = sum(row["n_tokens"] for row in rows)
        known = all(row["logprob"] is not None for row in rows) and tokens
        found["score"].append(known_mean(row["score"] for row in rows))
        found["length"].append(tokens / len(rows))
        found["unfinished"].append(sum(row["finish"] == "length" for row in rows) / len(rows))
        found["entropy"].append(-sum(row["logprob"] for row in rows) / tokens if known else None)
        found["equal"].append(sum(len({row["score"] for row in group}) == 1 for group in groups) / len(groups))
    return found
