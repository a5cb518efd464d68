"""The plan on machines that are not here: tokens, operations and device hours of each stage. Pure arithmetic.

Operations: 2 N a token and forward pass, 4 N the backward pass, 2 N of it with adapters, one forward pass more where
activations are computed again (Kaplan et al. 2020, arXiv 2001.08361, section 2.1). Not in them: attention (3 % at 8B
and a thousand tokens), loading, filters, rewards that are Python, and devices that wait for one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import InputError
from posttrain.execution.resources import training_memory
from posttrain.planning.costs import PASS, work
from posttrain.planning.fitting import Training
from posttrain.stages.amounts import Amounts, PlannedStage


@dataclass(frozen=True)
class Device:
    """`peak`: dense bfloat16 products, in TFLOP/s; `memory`: bytes. Both as the vendor's data sheet has them."""

    peak: float
    memory: float


DEVICES: Mapping[str, Device] = {
    "a100": Device(312, 80e9),  # SXM, 80 GB
    "l40s": Device(362, 48e9),
    "h100": Device(989, 80e9),  # SXM
    "h200": Device(989, 141e9),
    "b200": Device(2250, 180e9),
}
# Shares of the peak that others reached. Training: Llama 3 405B, 38 to 43 % (arXiv 2407.21783, table 4). Forward passes
# alone are taken to be as fast. Sampling: MLPerf Inference v4.1, Llama 2 70B offline on 8 H100, 84 samples a second of
# 294 new tokens, which is 0.44 of the bfloat16 peak with fp8 products; half of it with bfloat16 ones.
TRAINS, SAMPLES = 0.40, 0.22
FULL = 0.9  # of a device's memory: the rest is for what is computed


@dataclass(frozen=True)
class Cluster:
    """So many nodes with so many devices each. `trains`, `samples`: TFLOP/s that a device reaches; `processes`: of a
    training, None: as many as there are devices."""

    device: Device
    nodes: int
    devices: int
    trains: float
    samples: float
    processes: int | None = None

    @property
    def count(self) -> int:
        return self.nodes * self.devices

    def of_training(self, rows: int) -> int:
        """The devices of a training: as many as can share a micro-batch of so many rows evenly, at most."""
        most = min(self.count, self.processes or self.count)
        return max(one for one in range(1, most + 1) if rows % one == 0)


def cluster_of(device: str, devices: int, nodes: int, trains: float | None, samples: float | None) -> Cluster:
    """`trains`, `samples`: TFLOP/s that a device reaches, None: as others did.

    Raises:
        InputError: the device is not known.
    """
    known = DEVICES.get(device.lower())
    if known is None:
        raise InputError(
            f"--device {device} is not known; known are {', '.join(DEVICES)}",
            hint="take one that is like it, and give its rates by --trains and --samples",
            rule="command-device",
        )
    return Cluster(known, nodes, devices, trains or known.peak * TRAINS, samples or known.peak * SAMPLES)


def plan_at_scale(
    stages: Sequence[PlannedStage],
    todo: Mapping[str, Amounts],
    trainings: Mapping[str, Training],
    lengths: tuple[float, float],
    parameters: float,
    cluster: Cluster,
) -> dict[str, Any]:
    """The plan as plain JSON: of each stage that computes with the model, tokens, TFLOP, hours and device hours.

    A training has the devices that can share its micro-batch, all else has all. `trainings`: by their stage, with rows
    as long as they are on average; `lengths`: tokens of a prompt and of an answer; `parameters`: of the policy, and of
    the reward model.
    """
    rounds = []
    for number in sorted({planned.number for planned in stages}):
        found = []
        for planned in (one for one in stages if one.number == number):
            tokens, operations, rate = _work(planned, todo[planned.key], trainings, lengths, parameters, cluster)
            if operations:
                hours = operations / (rate * 1e12) / 3600
                training = trainings.get(planned.stage)
                used = cluster.of_training(training.micro.rows) if training else cluster.count
                share = {"devices": used, "hours": hours / used, "device_hours": hours}
                found.append({"stage": planned.role, "tokens": tokens, "tflop": operations / 1e12, **share})
        rounds.append({"round": number, "stages": found, **_sums(found)})
    return {"rounds": rounds, **_sums(rounds)}


def _sums(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) for name in ("tokens", "tflop", "hours", "device_hours")}


def _work(
    planned: PlannedStage,
    amounts: Amounts,
    trainings: Mapping[str, Training],
    lengths: tuple[float, float],
    parameters: float,
    cluster: Cluster,
) -> tuple[float, float, float]:
    """Tokens, operations, and the TFLOP/s that a device reaches."""
    training = trainings.get(planned.stage)
    if training:
        read = work(planned, amounts)
        stepped = read - amounts.passes * PASS
        tokens = training.micro.length * (stepped + amounts.passes)
        forward, backward = 2 * parameters, (2 if training.model.get("lora") else 4) * parameters
        again = forward if training.micro.checkpointed else 0.0
        step = (forward + backward + again) * training.micro.length * stepped
        learned = step + forward * training.micro.length * amounts.passes
        sampled = forward * amounts.tokens  # on-policy
        if not sampled:
            return tokens, learned, cluster.trains
        seconds = learned / cluster.trains + sampled / cluster.samples
        return tokens + amounts.tokens, learned + sampled, (learned + sampled) / seconds
    if planned.spec.samples:  # a prompt is read once for all of its answers
        tokens = amounts.tokens + lengths[0] * amounts.prompts
        return tokens, 2 * parameters * tokens, cluster.samples
    if planned.spec.unit == "tokens":
        tokens = amounts.tokens + amounts.read
        return tokens, 2 * parameters * tokens, cluster.samples if amounts.completions else cluster.trains
    models = sum(role in planned.inputs for role in ("reward_model", "watch_model"))
    if models:
        tokens = models * amounts.rows * sum(lengths)
        return tokens, 2 * parameters * tokens, cluster.trains
    return 0.0, 0.0, 1.0


def memory_notes(parameters: float, trainings: Sequence[Training], cluster: Cluster) -> list[str]:
    """What does not fit into a device, and what to do."""
    notes, room = [], cluster.device.memory
    for one in trainings:
        held, count = training_memory(parameters, one.model), cluster.of_training(one.micro.rows)
        said = f"{one.name}: weights, gradients and moments are {held / 1e9:,.0f} GB"
        if held / count > FULL * room:
            notes.append(
                f"{said}, {held / count / 1e9:,.0f} on each of the {count} devices that can share "
                f"{one.micro.rows} rows, which have {room / 1e9:,.0f}: raise {one.name}.per_device_train_batch_size "
                "(with less accumulation), take more devices, or train adapters (model.lora)"
            )
        elif held > FULL * room:
            notes.append(
                f"{said}, more than a device's {room / 1e9:,.0f}: `compute.shard: fsdp2` holds "
                f"{held / count / 1e9:,.0f} on each of {count}"
            )
    if trainings:
        a_node = min(cluster.devices, cluster.of_training(trainings[0].micro.rows))
        notes.append(
            f"each process of a training reads the model in float32 first: {4 * parameters * a_node / 1e9:,.0f} GB of "
            "a node's memory"
        )
    weights = 2 * parameters
    if weights > FULL * room * cluster.devices:
        notes.append(f"bfloat16 weights are {weights / 1e9:,.0f} GB: sample by a server over several nodes (`url`)")
    elif weights > FULL * room:
        notes.append(
            f"bfloat16 weights are {weights / 1e9:,.0f} GB, and a device has {room / 1e9:,.0f}: sample by a server "
            f"over {min(2 ** int(weights / (FULL * room)).bit_length(), cluster.devices)} devices "
            "(engine.server.devices)"
        )
    return notes
