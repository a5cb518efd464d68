"""Which fields of TRL's configs a recipe may set, and why it may not set the others.

Names, types, choices and defaults are in `trl_fields.json`, generated from the installed TRL by
`python -m posttrain.config.training`, so that validating a recipe imports neither torch nor trl; a test compares the
file with TRL. Refused fields, renamed fields and ranges are defined here; those of a single trained stage with its
section (`posttrain.config.training`, `posttrain.config.kto`).
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from posttrain.config.problems import KeyProblem, said
from posttrain.config.section import MOST
from posttrain.errors import did_you_mean

_FILE = Path(__file__).with_suffix(".json")

_HUB = "`push:` and `posttrain push` send models to the Hub, not a trainer"
_EVALUATION = "a trained stage does not evaluate: the evaluate stage does, on the dev set"
_CHECKPOINTS = "the run manages checkpoints and resuming; save_steps sets how often one is saved"
_DATA = "the stage builds the rows and their columns"
_TOKENIZER = "tokenizer and chat template come from the model folder and stay the same in every stage"
_LOGGING = "the run manages logging; logging_steps sets how often"
_LAUNCH = "the launcher decides where and on how many processes a stage runs"
_TRACKING = "the recipe's own `report_to` sets the trackers for all stages; runs are named after the stages"

# By name; a trailing * matches any rest.
REFUSED: dict[str, str] = {
    "output_dir": "a stage writes into its own artifact of the run folder",
    "push_to_hub*": _HUB,
    "hub_*": _HUB,
    "trackio_*": _TRACKING,
    "report_to": _TRACKING,
    "project": _TRACKING,
    "run_name": _TRACKING,
    "trust_remote_code": "no code that comes with a model is run",
    "model_init_kwargs": "models are passed by path; `model:` holds what can be chosen",
    "seed": "it is derived from the recipe's `seed`, the stage and the round",
    "data_seed": "it is derived from the recipe's `seed`, the stage and the round",
    "full_determinism": "seeds are derived from the recipe's `seed`, the stage and the round",
    "do_*": "each stage trains and nothing else",
    "resume_from_checkpoint": _CHECKPOINTS,
    "save_strategy": _CHECKPOINTS,
    "save_only_model": _CHECKPOINTS,
    "save_on_each_node": _CHECKPOINTS,
    "save_total_limit": _CHECKPOINTS,
    "enable_jit_checkpoint": _CHECKPOINTS,
    "ignore_data_skip": _CHECKPOINTS,
    "restore_callback_states_from_checkpoint": _CHECKPOINTS,
    "load_best_model_at_end": _EVALUATION,
    "metric_for_best_model": _EVALUATION,
    "greater_is_better": _EVALUATION,
    "eval_*": _EVALUATION,
    "per_device_eval_batch_size": _EVALUATION,
    "bf16_full_eval": _EVALUATION,
    "fp16_full_eval": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "remove_unused_columns": _DATA,
    "label_names": _DATA,
    "length_column_name": _DATA,
    "dataset_text_field": _DATA,
    "dataset_kwargs": _DATA,
    "chat_template_path": _TOKENIZER,
    "eos_token": _TOKENIZER,
    "pad_token": _TOKENIZER,
    "logging_strategy": _LOGGING,
    "logging_first_step": _LOGGING,
    "logging_nan_inf_filter": _LOGGING,
    "log_*": _LOGGING,
    "disable_tqdm": _LOGGING,
    "use_cpu": _LAUNCH,
    "local_rank": _LAUNCH,
    "accelerator_config": _LAUNCH,
    "parallelism_config": _LAUNCH,
    "deepspeed": _LAUNCH,
    "auto_find_batch_size": "another batch size gives another result; set per_device_train_batch_size",
    "debug": "it is for debugging a trainer, not for a run",
    "fp16": "float16 overflows in these losses; `bf16: true` is autocast to bfloat16",
}
# Of stages that train against a reference policy.
FIXED_REFERENCE = dict.fromkeys(
    ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    "the reference model is fixed during a stage",
)

# Names in other tools.
RENAMED: dict[str, str] = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "max_seq_length": "max_length",
    "rpo_alpha": "nll_weight",
    "nll_coef": "nll_weight",
    "scheduler": "lr_scheduler_type",
}

# What TRL has no more, and what takes its place.
GONE: dict[str, str] = {
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "warmup_ratio": "`warmup_steps` takes a share below 1 or a number of steps",
}

# These change how a stage runs, not its result: not in the cache key.
HOW_ONLY = frozenset(
    [
        "save_steps",
        "logging_steps",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_offloading",
        "torch_empty_cache_steps",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_in_order",
        "dataloader_multiprocessing_context",
        "dataset_num_proc",
        "ddp_timeout",
        "ddp_backend",
        "ddp_bucket_cap_mb",
        "skip_memory_metrics",
        "precompute_ref_batch_size",
        "include_num_input_tokens_seen",
    ]
)

# Always written into the resolved recipe, and so in the cache key, also at TRL's default.
SHOWN = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
)

_POSITIVE = (0.0, MOST, False)  # lowest, highest, whether the lowest itself is allowed
_NOT_NEGATIVE = (0.0, MOST, True)
_COUNT = (1.0, MOST, True)
_FEW = (0.0, 10_000, True)
_ANY = (-MOST, MOST, True)  # of fields that are not listed
RANGES: dict[str, tuple[float, float, bool]] = {
    "learning_rate": _POSITIVE,
    "num_train_epochs": _POSITIVE,
    "max_steps": (-1, MOST, True),
    "per_device_train_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "max_length": _COUNT,
    "logging_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "adam_beta1": (0.0, 1.0, True),
    "adam_beta2": (0.0, 1.0, True),
    "adam_epsilon": _POSITIVE,
    "label_smoothing_factor": (0.0, 1.0, True),
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "beta": _POSITIVE,
    "ld_alpha": (0.0, 1.0, True),
    "center_rewards_coefficient": _NOT_NEGATIVE,
    "dataloader_num_workers": _FEW,
    "dataset_num_proc": _FEW,
    "dataloader_prefetch_factor": _FEW,
}
# Of single stages, where it is another one there.
OF_STAGE: dict[tuple[str, str], tuple[float, float, bool]] = {("online", "beta"): _NOT_NEGATIVE}  # 0: no reference


@cache
def fields(trainer: str) -> dict[str, dict[str, Any]]:
    """The fields of a trained stage's TRL config: {name: {"types": [...], "default": ..., "choices": [...]}}."""
    return json.loads(_FILE.read_text("utf-8"))[trainer]


def refusal(name: str, more: Mapping[str, str]) -> str | None:
    """Why a recipe may not set this field; None if it may. `more`: what a single stage refuses besides `REFUSED`."""
    for key, reason in {**REFUSED, **more}.items():
        if name == key or (key.endswith("*") and name.startswith(key[:-1])):
            return reason
    return None


def problem(
    trainer: str, name: str, value: object, own: tuple[str, ...] = (), refused: Mapping[str, str] = {}
) -> KeyProblem | None:
    """The error of `name: value` in a trained section; None if it is valid. `own`: the section's keys that TRL does not
    have, `refused`: the fields that it refuses besides `REFUSED`."""
    known = fields(trainer)
    if name in GONE:
        return KeyProblem(f"TRL has no {name!r} any more: {GONE[name]}", rule="recipe-unknown-key")
    reason = refusal(name, refused)
    if reason:
        return KeyProblem(f"'{name}' cannot be set here: {reason}", rule="recipe-refused-key")
    if name not in known:
        allowed = [*own, *(key for key in known if not refusal(key, refused))]
        right = RENAMED.get(name)
        near = f", did you mean {right!r}?" if right in allowed else did_you_mean(name, allowed)
        return KeyProblem(f"unknown key {name!r} in '{trainer}'{near}", rule="recipe-unknown-key")
    return _wrong_value(trainer, name, value, known[name])


def _wrong_value(trainer: str, name: str, value: object, field: dict[str, Any]) -> KeyProblem | None:
    if not any(_is(value, kind) for kind in field["types"]):
        wanted = " or ".join(_TYPES[kind][1] for kind in field["types"])
        return KeyProblem(f"'{name}' must be {wanted}, not {said(value)}", rule="recipe-type")
    choices = field.get("choices")
    if choices:
        for item in value if isinstance(value, list) else [value]:
            if item is not None and item not in choices:
                near = did_you_mean(str(item), choices)
                message = f"'{name}' has no choice {str(item)!r}{near} ({', '.join(choices)})"
                return KeyProblem(message, rule="recipe-choice")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high, included = bounds(trainer, name)
        if not (low <= value <= high) or (value == low and not included):
            limits = [f"{'at least' if included else 'above'} {low:g}"] if low > -MOST else []
            limits += [f"at most {high:,.0f}"] if high < MOST or value > high else []
            return KeyProblem(f"'{name}' must be {' and '.join(limits)}, not {value!r}", rule="recipe-range")
    return None


def bounds(trainer: str, name: str) -> tuple[float, float, bool]:
    """The lowest and highest value of a numeric field, and whether the lowest itself is allowed."""
    return OF_STAGE.get((trainer, name)) or RANGES.get(name, _ANY)


# The types of JSON Schema, as Python has them and as messages call them.
_TYPES: dict[str, tuple[type, str]] = {
    "integer": (int, "an integer"),
    "number": (float, "a number"),
    "boolean": (bool, "true or false"),
    "string": (str, "a string"),
    "array": (list, "a list"),
    "object": (dict, "a mapping"),
    "null": (type(None), "null"),
}


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "number":
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, _TYPES[kind][0])


def generate(configs: Mapping[str, str]) -> dict[str, Any]:
    """The contents of `trl_fields.json`, from the installed TRL, which this imports. `configs`: the name of TRL's class
    of each trained stage."""
    import trl

    made: dict[str, Any] = {"trl": trl.__version__}
    for trainer, name in configs.items():
        cls = getattr(trl, name)
        hints = typing.get_type_hints(cls)
        made[trainer] = {
            field.name: _describe(hints[field.name], field) for field in dataclasses.fields(cls) if field.init
        }
    return made


def _describe(hint: Any, field: Any) -> dict[str, Any]:
    kinds, choices = _kinds(hint)
    if field.metadata.get("choices"):
        choices = list(field.metadata["choices"])
    if field.name == "loss_type" and not choices:  # DPO names its losses only in the help text
        choices = re.findall(r"`'(\w+)'`", field.metadata["help"])
    default = field.default
    if default is dataclasses.MISSING:
        default = field.default_factory()
    described: dict[str, Any] = {"types": kinds, "default": getattr(default, "value", default)}
    if choices:
        described["choices"] = [str(choice) for choice in choices]
    return described


def _kinds(hint: Any) -> tuple[list[str], list[str]]:
    """The JSON types of a type hint, in order, and the choices of an enumeration or Literal."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(hint)]
        kinds = list(dict.fromkeys(kind for part in parts for kind in part[0]))
        return kinds, [choice for part in parts for choice in part[1]]
    if origin is Literal:
        return list(dict.fromkeys(_kinds(type(part))[0][0] for part in typing.get_args(hint))), []
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ["string"], [str(member.value) for member in hint]
    known = {python: name for name, (python, _) in _TYPES.items()}
    return [known.get(origin or hint, "object")], []


def as_text(made: dict[str, Any]) -> str:
    """`trl_fields.json` as text, one field per line, so that the diff to a new version of TRL is readable."""
    lines = []
    for section, entries in made.items():
        if isinstance(entries, dict):
            rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(field)}" for name, field in entries.items())
            lines.append(f" {json.dumps(section)}: {{\n{rows}\n }}")
        else:
            lines.append(f" {json.dumps(section)}: {json.dumps(entries)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(configs: Mapping[str, str]) -> None:
    """Regenerates `trl_fields.json`: see `generate`."""
    _FILE.write_text(as_text(generate(configs)), "utf-8")
