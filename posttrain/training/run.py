"""Runs one training, from a model folder to a model folder, with a trainer of TRL's."""

from __future__ import annotations

import copy
import gc
import json
import math
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from peft import PeftModel, TaskType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from posttrain.config import Trained
from posttrain.engines.load import without_router_logits
from posttrain.errors import NearLimitError, NonFiniteError, StageError
from posttrain.job import Job
from posttrain.storage.checkpoint_seals import latest_whole
from posttrain.storage.files import write_durably
from posttrain.system import gpus, keep_memory, ran_out, return_memory
from posttrain.training import sharding
from posttrain.training.checkpoints import Checkpoints, mean_loss
from posttrain.training.lora import four_bits, lora_config, merged
from posttrain.training.lora_product import fuse
from posttrain.training.ranks import in_ranks, rank, use_cores, world
from posttrain.training.trackers import trackers

A = TypeVar("A", bound=TrainingArguments)

# What differs from TRL's own defaults, and why.
OURS: dict[str, Any] = {
    "report_to": "none",  # trackers are added by posttrain.training.trackers
    "disable_tqdm": True,  # the loop shows the progress
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # on, a loss that is no number is logged as the one before
    "save_strategy": "steps",
    "save_steps": 50,
    "save_total_limit": 2,  # the newest, and the one before in case the newest is damaged
    "max_length": None,  # rows that are too long are counted and left out before (posttrain.training.rows)
    "train_sampling_strategy": "group_by_length",  # rows of mixed lengths waste about half of the tokens on padding
    "dataloader_pin_memory": False,
    "precompute_ref_log_probs": True,  # the reference is fixed: once is enough, and it need not stay in memory
}


def arguments(kind: type[A], section: Trained, job: Job, **over: Any) -> A:
    """The trainer's arguments: `over`, then the section's TRL fields, then our defaults, then TRL's. Output and
    checkpoints go to the job's scratch."""
    chosen = fields(section, job, torch.cuda.is_available(), **over)
    return kind(**{name: value for name, value in chosen.items() if name in kind.__dataclass_fields__})


def fields(section: Trained, job: Job, cuda: bool, **over: Any) -> dict[str, Any]:
    """The fields that `arguments` sets. `cuda`: whether there is a GPU."""
    chosen: dict[str, Any] = {**OURS, **section.trl, **section.own_fields, **over}
    chosen["length_column_name"] = "length"
    chosen["output_dir"] = str(job.scratch / "checkpoints")
    chosen["seed"] = chosen["data_seed"] = job.seed
    if world() > 1:  # the ranks share each micro-batch of the recipe, so that a step learns from the same rows
        chosen["accelerator_config"] = {"split_batches": True}
        if job.runtime.get("shard") == "fsdp2":
            chosen |= copy.deepcopy(sharding.FIELDS)
    if not cuda:
        chosen["use_cpu"] = True
        chosen.setdefault("bf16", False)  # TRL's default is True, which a CPU refuses
        chosen.setdefault("activation_checkpointing", False)
    named = job.config.get("model", {}).get("attention")
    attention = "eager" if named == "eager" or not has_sdpa(job.inputs.get("model")) else "sdpa"
    chosen["model_init_kwargs"] = {"attn_implementation": attention, "dtype": "float32", **four_bits(job)}
    return chosen


def has_sdpa(model: Path | None) -> bool:
    """Whether transformers supports torch's fused attention (SDPA) for this model type (not for Gemma 2, BLOOM,
    gpt-oss)."""
    if model is None:
        return True
    kind: Any = AutoModelForCausalLM._model_mapping.get(type(AutoConfig.from_pretrained(model)), None)
    return kind is None or kind._supports_sdpa


class Watch(TrainerCallback):
    """Reports optimizer steps, and stops a training whose loss is not finite."""

    def __init__(self, stage: str, job: Job) -> None:
        self.stage, self.job = stage, job

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._tell(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._tell(state)

    def _tell(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            self.job.progress(state.global_step, state.max_steps, "steps")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        last = state.log_history[-1]
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(last.get(name, 0.0))):
                raise not_finite(self.stage, self.job, f"{name} became {last[name]}", state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Checks the weights before the checkpoint is sealed: nothing resumes from weights that are not finite."""
        model = kwargs.get("model")
        if isinstance(model, torch.nn.Module):
            trained = ((name, each) for name, each in model.named_parameters() if each.requires_grad)
            check_finite(self.stage, self.job, trained, state.global_step)


def check_finite(stage: str, job: Job, weights: Iterable[tuple[str, torch.Tensor]], step: int) -> None:
    """Raises NonFiniteError: a weight is not finite."""
    for name, weight in weights:
        if not torch.isfinite(weight).all():
            raise not_finite(stage, job, f"{name} holds a value that is not finite", step)


def not_finite(stage: str, job: Job, problem: str, step: int) -> NonFiniteError:
    """The error names what the training started from: the last good model."""
    model = job.inputs.get("model")
    began = f"It began from {model.name}, which is whole. " if model else ""
    return NonFiniteError(
        f"{stage}: {problem} by step {step}; nothing was published. {began}Lower the learning rate, or look at the "
        "data of this stage.",
        step,
    )


def trainer_options(
    job: Job, args: TrainingArguments, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, task: TaskType
) -> dict[str, Any]:
    """What TRL's trainers have in common: the job's model, with its LoRA for this task, trained on these rows."""
    return {
        "model": str(job.inputs["model"]),
        "args": args,
        "train_dataset": rows,
        "processing_class": tokenizer,
        "peft_config": lora_config(job, task),
    }


def train(
    stage: str, job: Job, section: Trained, args: Callable[[], A], make: Callable[[A], Trainer]
) -> dict[str, Any]:
    """Trains with the trainer that `make` builds on `args`, and saves the model in `job.out`. Resumes from a complete
    checkpoint.

    Both are called in each process of the training: the runtime's `processes`, by default one for each GPU. They share
    the rows of a micro-batch evenly.

    A micro-batch that does not fit into memory is halved and gradients are accumulated twice as often, so that a step
    learns from the same rows. The size that fitted is in the metrics (`micro_batch`); the runtime may have it from an
    earlier round.

    Raises:
        NonFiniteError: the loss, or a weight, is not a finite number.
        StageError: not even a single row fits, or the micro-batch cannot be shared evenly.
    """
    processes = world() if world() > 1 else job.runtime.get("processes") or max(1, len(gpus()))
    rows = section.trl["per_device_train_batch_size"]
    if rows % processes:
        raise StageError(
            f"{stage}: a micro-batch of {rows} rows ({stage}.per_device_train_batch_size) cannot be shared evenly by "
            f"{processes} processes; set it to a multiple of {processes}, or compute.processes to a divisor of it",
            rule="training-processes",
        )
    torch.set_num_threads(1)
    if job.runtime.get("shard"):
        return_memory()
    else:
        keep_memory()
    fitted = job.scratch / "micro_batch.json"  # what did not fit before a kill is not tried again: the bits differ
    micro_batch = job.runtime.get("micro_batch", rows)
    micro_batch = json.loads(fitted.read_text("utf-8")) if fitted.exists() else micro_batch
    while True:
        checkpoint = latest_whole(job.scratch / "checkpoints")

        def one(most: int = micro_batch, checkpoint: Path | None = checkpoint) -> dict[str, Any]:
            made = args()
            shrink(made, most, processes)
            return _train(stage, job, made, make, processes, checkpoint)

        try:
            return in_ranks(one, processes)
        except RuntimeError as error:
            if not ran_out(error) or world() > 1:  # of ranks that another began, the others have to be told
                raise
        if micro_batch <= processes:
            raise StageError(
                f"{stage}: memory is too small for a single row; set {stage}.max_length or model.lora, or turn on "
                f"{stage}.activation_checkpointing"
            )
        micro_batch = max(processes, micro_batch // 2)
        write_durably(fitted, json.dumps(micro_batch))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def shrink(args: TrainingArguments, micro_batch: int, processes: int = 1) -> None:
    """Sets the largest micro-batch of at most `micro_batch` rows that keeps the number of rows per step and is shared
    evenly by the processes."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    size = max(processes, min(micro_batch, args.per_device_train_batch_size))
    while rows % size or size % processes:
        size -= 1
    args.per_device_train_batch_size = size
    args.gradient_accumulation_steps = rows // size


def _train(
    stage: str, job: Job, args: A, make: Callable[[A], Trainer], processes: int, checkpoint: Path | None
) -> dict[str, Any]:
    """`checkpoint`: what to resume from."""
    trainer = make(args)
    if trainer.accelerator.num_processes != processes:
        raise StageError(f"{stage}: {trainer.accelerator.num_processes} processes train, not {processes}")
    _check_rows(stage, trainer)
    if trainer.model is not None:
        use_cores(trainer.model)
    if isinstance(trainer.model, PeftModel):
        fuse(trainer.model)
    trainer.add_callback(Watch(stage, job))
    for tracker in trackers(job, trainer.args) if rank() == 0 else ():
        trainer.add_callback(tracker)
    checkpoints = Checkpoints(checkpoint, job.runtime.get("checkpoint_minutes"))
    trainer.add_callback(checkpoints)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if checkpoints.stopped:
        raise NearLimitError(f"{stage}: stopped behind step {trainer.state.global_step}")
    loss = mean_loss(trainer.state.log_history)
    if loss is None or not math.isfinite(loss):
        raise not_finite(stage, job, f"the training loss is {loss}", trainer.state.global_step)
    save(stage, trainer, job)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    why: str | None = getattr(trainer, "fallback", None)
    return {
        "steps": trainer.state.global_step,
        "loss": loss,
        "first_loss": history[0]["loss"] if history else None,
        "last": {name: value for name, value in (history[-1] if history else {}).items() if name != "step"},
        "resumed_at": int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        "micro_batch": trainer.args.per_device_train_batch_size,
        **({"processes": processes} if processes > 1 else {}),
        **({"fallback": [f"rows are not packed, which takes longer: {why}"]} if why else {}),
    }


def _check_rows(stage: str, trainer: Trainer) -> None:
    args, rows = trainer.args, trainer.train_dataset
    if args.dataloader_drop_last and isinstance(rows, Sized) and len(rows) < args.per_device_train_batch_size:
        raise StageError(
            f"{stage}: with {stage}.dataloader_drop_last the {len(rows)} rows, fewer than a batch of "
            f"{args.per_device_train_batch_size}, are all left out; set {stage}.dataloader_drop_last: false, or "
            f"a smaller {stage}.per_device_train_batch_size",
            rule="training-too-few-rows",
        )


def save(stage: str, trainer: Trainer, job: Job) -> None:
    """Saves the trained model, adapters merged in, as a plain folder: safetensors, tokenizer, generation config. Rank 0
    writes; all of them check their weights."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, torch.nn.Module)
    check_finite(stage, job, model.named_parameters(), trainer.state.global_step)
    weights = sharding.whole_weights(trainer)
    if rank() > 0:
        return
    if isinstance(model, PeftModel):
        model = merged(model, job, weights)
        weights = None
        check_finite(stage, job, model.named_parameters(), trainer.state.global_step)
    assert isinstance(model, PreTrainedModel)
    dtype = getattr(torch, job.config["model"]["dtype"])
    model.config.use_cache = True  # the trainer turned it off; whoever samples wants it
    without_router_logits(model.config)  # the trainer turned them on, for the loss that balances experts
    model.config._attn_implementation_internal = None  # what trained it is not what must run it
    if weights is None:
        model.to(dtype).save_pretrained(job.out)
    else:
        model.config.dtype = dtype
        model.save_pretrained(job.out, state_dict={name: weight.to(dtype) for name, weight in weights.items()})
    assert isinstance(trainer.processing_class, PreTrainedTokenizerBase)
    trainer.processing_class.save_pretrained(job.out)
