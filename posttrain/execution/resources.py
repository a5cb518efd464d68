"""Checks that disk and memory suffice, before a run and before each stage.

The need of a stage is a lower bound, computed from the sizes of its model and tables; so a stage that is refused here
would have failed later. Not covered: activations (see `training_peak`, an estimate), GPU memory (a training there
halves its micro-batches by itself), and what other programs take in the meantime.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import ResourceError
from posttrain.models import counted, json_files, weights
from posttrain.stages.registry import STAGES
from posttrain.system import bytes_in_words, gpu

TRAINING = 4  # weights, gradients and two moments, in float32

FLOAT = 4  # bytes

ADAPTER = 0.01  # of the parameters, about, where LoRA trains

CHECKPOINTS = 3  # the newest two, and the one that is being written

TOKEN = 1.0  # bytes of a token in a compressed table of samples: 1.1 to 1.5 in those of the quickstart

COPIES = 2  # of a table: shards, and what they are joined into


def training_memory(count: float, model: Mapping[str, Any]) -> float:
    """Bytes for training `count` parameters, by LoRA if `model` (of the config) says so. Activations not included."""
    lora = model.get("lora")
    if not lora:
        return FLOAT * count * TRAINING
    return count * (0.5 if lora.get("load_in_4bit") else FLOAT) + FLOAT * count * ADAPTER * TRAINING


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder: parameters, layers, width of the residual stream and of the MLP (of all experts that a
    token uses), attention heads, tokens of the vocabulary."""

    parameters: float
    layers: int
    hidden: int
    inner: int
    heads: int
    vocabulary: int

    @classmethod
    def of(cls, folder: Path, parameters: float) -> Shape | None:
        """Of a model folder's config, under the names that most types have; None if it says otherwise."""
        config = json_files.read(folder / "config.json")
        config = config.get("text_config", config)

        def first(*names: str) -> Any:
            return next((config[name] for name in names if config.get(name)), None)

        layers, hidden = first("num_hidden_layers", "n_layer"), first("hidden_size", "n_embd")
        heads, vocabulary = first("num_attention_heads", "n_head"), first("vocab_size")
        if not all(isinstance(one, int) for one in (layers, hidden, heads, vocabulary)):
            return None
        experts = first("num_experts_per_tok") or 1
        inner = first("moe_intermediate_size") if experts > 1 else None
        inner = inner or first("intermediate_size", "n_inner") or 4 * hidden
        if not isinstance(inner, int) or not isinstance(experts, int):
            return None
        return cls(parameters, layers, hidden, inner * experts, heads, vocabulary)


@dataclass(frozen=True)
class MicroBatch:
    """How a training computes: rows at once, tokens of the longest, and of these those that the head predicts;
    `accumulated`: gradients are held while the next micro-batch is computed; `checkpointed`: activations are computed
    again; `eager`: attention weights are kept; `copies`: of the weights, beside those that are trained."""

    rows: int
    length: int
    predicted: int
    accumulated: bool = False
    checkpointed: bool = False
    bf16: bool = False
    eager: bool = False
    copies: int = 0


# Fitted to SmolLM2-135M, one step in float32 and bfloat16 on a CPU (tests/planning/test_fitting.py).
ACTIVATIONS = (15, 7)  # floats of a layer and token, in units of its width and of its MLP's
HALF_PRECISION = 0.6  # of them under bfloat16 autocast: norms and sums stay float32
ATTENTION = 3  # copies of the attention weights, eager
HEAD = 6  # copies of a tile of logits
TILE = (4096, 32768)  # tokens and vocabulary of one: TRL's fused head


def training_peak(shape: Shape, model: Mapping[str, Any], micro: MicroBatch) -> float:
    """About the peak memory of a training, in bytes: weights, gradients, moments, activations, logits. Within a factor
    1.5 of what was measured."""
    held = training_memory(shape.parameters, model)
    weights = FLOAT * shape.parameters
    if not model.get("lora") and not micro.accumulated:
        held -= weights  # gradients come as activations go
    copies = weights / 2 if micro.bf16 else 0.0  # which autocast keeps
    tokens, (width, inner) = micro.rows * micro.length, ACTIVATIONS
    floats = width * shape.hidden + inner * shape.inner
    layer = FLOAT * tokens * floats * (HALF_PRECISION if micro.bf16 else 1.0)
    if micro.eager:
        layer += FLOAT * tokens * ATTENTION * shape.heads * micro.length
    kept = FLOAT * tokens * shape.hidden
    body = shape.layers * kept + layer if micro.checkpointed else shape.layers * layer
    tile = min(micro.rows * micro.predicted, TILE[0]) * min(shape.vocabulary, TILE[1])
    logits = FLOAT * HEAD * tile if micro.predicted else 0.0
    copies += micro.copies * weights
    return max(held + copies + body + logits, training_memory(shape.parameters, model))


def training_disk(count: float, size: int, model: Mapping[str, Any]) -> float:
    """Bytes that a training writes: checkpoints of weights and two moments in float32, and a model of `size` bytes."""
    trained = count * (ADAPTER if model.get("lora") else 1)
    return CHECKPOINTS * 3 * FLOAT * trained + size


@dataclass(frozen=True)
class Need:
    """Lower bounds, in bytes."""

    disk: float = 0.0
    memory: float = 0.0


def of_stage(stage: Mapping[str, Any], root: Path) -> Need:
    """The need of a stage (the content of its `stage.json`) of the run at `root`, less what is already in its work
    folder."""
    inputs, spec = {role: root / path for role, path in stage["inputs"].items()}, STAGES[stage["stage"]]
    if spec.trained:
        model = stage["config"]["model"]
        count = counted(inputs["model"])
        need = Need(training_disk(count, weights(inputs["model"]), model), training_memory(count, model))
    elif spec.samples:
        served = "server" in stage["runtime"]  # then the weights are elsewhere
        need = Need(_answers(stage, inputs["prompts"]), 0.0 if served else max(map(weights, inputs.values())))
    else:
        tables = sum(path.stat().st_size for folder in inputs.values() for path in folder.glob("*.parquet"))
        need = Need(tables, weights(inputs["reward_model"]) if "reward_model" in inputs else 0.0)
    already = sum(path.stat().st_size for path in (root / "work" / stage["key"]).rglob("*") if path.is_file())
    return Need(max(0.0, need.disk - already), need.memory)


def check(need: Need, root: Path, what: str) -> None:
    """Raises ResourceError if less is free than `need`; `what` names it in the message."""
    import psutil

    there = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free, memory = shutil.disk_usage(there).free, psutil.virtual_memory().available
    if need.disk > free:
        raise ResourceError(
            f"{what} need about {bytes_in_words(need.disk)} on the disk, and {bytes_in_words(free)} are free at "
            f"{there}; nothing was started. Free some space there (older runs, the cache of the Hub), or name another "
            "disk by --run",
            rule="command-disk-room",
        )
    if need.memory > memory and not gpu():
        raise ResourceError(
            f"{what} need about {bytes_in_words(need.memory)} of memory, and {bytes_in_words(memory)} are free; "
            "nothing was started. Take a smaller model, train adapters (model.lora), or use a larger machine",
            rule="command-memory-room",
        )


def _answers(stage: Mapping[str, Any], prompts: Path) -> float:
    """Bytes of the answers that a stage samples, all at their longest."""
    import pyarrow.parquet as pq

    from posttrain.stages.amounts import PlannedStage, Sets, Shares, amounts

    files = {name: prompts / f"{name}.parquet" for name in ("train", "dev", "heldout")}
    rows = {name: pq.read_metadata(path).num_rows if path.is_file() else 0 for name, path in files.items()}
    planned = PlannedStage(stage["key"], 0, stage["stage"], stage["stage"], stage["config"], {}, frozenset())
    made = amounts([planned], Sets(rows["train"], rows["dev"], rows["heldout"], where=rows["train"]), Shares())
    return made[stage["key"]].tokens * TOKEN * COPIES
