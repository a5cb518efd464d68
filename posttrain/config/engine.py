"""The sections of how work is done: the engine that samples, a server behind it, and what of the machine is used."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from posttrain.config.cluster import Ray, Slurm
from posttrain.config.section import MOST, Few, Section, Tokens, complain
from posttrain.engines.server_dialects import DIALECTS


class Server(Section):
    """An OpenAI-compatible server. The policy changes each round, so `start` is the usual way: each stage that samples
    starts a server with its policy's weights and ends it. A server at a `url` must be given the weights by the user."""

    kind: Literal["vllm", "sglang", "tgi", "transformers"]
    """The kind of server: its protocol and features."""
    start: list[str] | None = Field(default=None, min_length=1)
    """The command that serves the folder `{model}` on `{port}` of this machine, word by word."""
    url: str | None = Field(default=None, pattern=r"^https?://")
    """Address of a running server."""
    devices: Few | None = None
    """GPUs of a server that is started: for every so many there is one, with the others invisible to it; null: one
    server, which sees all."""

    @model_validator(mode="after")
    def _start_or_url(self) -> Server:
        if (self.start is None) == (self.url is None):
            complain((), "a server has either `start` or `url`", rule="recipe-one-of")
        if self.url and self.devices:
            complain(("devices",), "the GPUs of a running server are its own affair", rule="recipe-belongs")
        for word in ("{model}", "{port}"):
            if self.start is not None and not any(word in part for part in self.start[1:]):
                complain(
                    ("start",),
                    f"the command lacks {word}, which is filled in for each stage",
                    rule="recipe-server-command",
                )
        for option, reason in DIALECTS[self.kind].refused.items():
            if self.start is not None and option in self.start:
                complain(("start",), f"not with {option}: {reason}", rule="recipe-server-command")
        return self


class Engine(Section):
    """How completions are sampled."""

    formerly: ClassVar[dict[str, str]] = {"shard_prompts": "shard_tokens"}

    use: Literal["shared-prefix", "plain", "server"] = "shared-prefix"
    """`shared-prefix`: a prompt's K completions share its cache and are computed as one until their tokens differ;
    `plain`: transformers' own forward; `server`: see `server`."""
    server: Server | None = None
    """The server of `use: server`."""
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Compute type of the sampling model; auto: bfloat16 where it is measured to be at least 1.2 times as fast as
    float32 with the model's shapes. int8, on a CPU: 8-bit products for answers to training prompts (preferences,
    samples, difficulty, pairs), auto for all else. Reward models score in the float type, beside a server in float32.
    A training's type is its `bf16`, resolved in the same way."""
    shard_tokens: Tokens = 32_768
    """Most tokens of one shard: its prompts, plus `max_new_tokens` for each answer. The plan depends on prompts and
    recipe alone, and the same plan gives the same bits. A GPU wants more: a million or two."""

    @model_validator(mode="after")
    def _server_fits(self) -> Engine:
        if self.use == "server" and self.server is None:
            complain(
                ("use",),
                "`server` is missing",
                "add `server: {kind: ..., start: [...]}` beside it",
                rule="recipe-needs-key",
            )
        if self.use != "server" and self.server is not None:
            complain(
                ("server",),
                f"`use: {self.use}` does not use a server",
                "set `use: server`, or `server: null`",
                rule="recipe-belongs",
            )
        if self.server is not None and self.dtype != "auto":
            complain(
                ("dtype",),
                "the dtype of a server is set by its own options",
                "set it in `server.start`",
                rule="recipe-belongs",
            )
        return self

    def built_in(self) -> dict[str, Any]:
        """What of it is in the key of a stage that the built-in engine computes beside a server, too."""
        return {
            "use": "shared-prefix" if self.server else self.use,
            "dtype": "auto" if self.server else self.dtype,
            "shard_tokens": self.shard_tokens,
        }

    def lacks(self) -> dict[str, str]:
        """What it cannot do of what a stage or filter may need, and in whose name."""
        if self.server is None:
            return {}
        can = asdict(DIALECTS[self.server.kind].capabilities)
        return {name: f"a server of kind {self.server.kind}" for name, has in can.items() if not has}


class Compute(Section):
    """How the work is run. Changes no result."""

    cluster: Annotated[Slurm | Ray, Field(discriminator="kind")] | None = None
    """The cluster that trains, samples and scores; null: this machine."""

    workers: Few | None = None
    """Processes for sampling and scoring; null: one per core."""
    processes: Few | None = None
    """Processes of a training, which share each micro-batch of `per_device_train_batch_size` rows evenly; null: one for
    each GPU, and one on a CPU."""
    shard: Literal["fsdp2"] | None = None
    """How the processes of a training hold the model. null: each holds all of it (DDP); fsdp2: each holds a part of its
    weights, gradients and optimizer, which takes more communication."""
    stages_at_once: Few = 1
    """Independent stages that run at once, at most; each needs its own memory."""
    checkpoint_minutes: float | None = Field(default=15, gt=0, le=MOST)
    """Minutes between checkpoints of a training, besides every `save_steps`; null: by steps alone."""
    reward_minutes: float | None = Field(default=60, gt=0, le=MOST)
    """Minutes that one call of a reward function may take (it gets the answers to a shard of prompts, or about 2,048
    samples); then the stage fails and names file, line and prompt. null: no limit."""
    attempts: Few = 3
    """Attempts at a stage whose process dies, or whose memory, device or loss fails: the second one unchanged, further
    ones with micro-batches and processes halved; each resumes. 1: no retry. See docs/failures.md."""

    @model_validator(mode="after")
    def _shared_evenly(self) -> Compute:
        nodes = self.cluster.nodes if self.cluster and self.cluster.kind == "slurm" else 1
        if self.processes and self.processes % nodes:
            complain(
                ("processes",),
                f"{self.processes} processes cannot be shared evenly by {nodes} nodes",
                f"set it to a multiple of {nodes}, or change compute.cluster.nodes",
                rule="recipe-nodes",
            )
        return self
