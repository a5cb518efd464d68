"""Ray: a stage's shards are tasks over all nodes, its training is one, or Ray Train's where it needs several nodes.

What is lost with a node Ray runs again; what a stage raises is for `compute.attempts`. What runs on the nodes:
posttrain.execution.ray_node.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.cluster import Ray as Settings
from posttrain.errors import EngineError, StageCrashedError, StageError
from posttrain.execution import ray_node, task
from posttrain.execution.ray_node import line
from posttrain.stages.registry import STAGES
from posttrain.storage.part import Part

_SHARES = 4  # tasks of a stage for each place there is: a slow node takes fewer of them
_ANSWERS = 300.0  # seconds that a node has to say hello
_LOOK_AGAIN = 30.0  # seconds between looks at the nodes
_PATIENCE = 600.0  # seconds that work may wait for a node that is large enough, once there is none

Need = dict[str, float]  # by Ray's names: CPU, GPU, memory (bytes)


@dataclass
class _Going:
    """Work of a stage: `count` times `each`, a training's at once."""

    refs: list[Any]
    each: Need
    count: int
    had_room: float  # when it was seen last that the nodes can hold it
    looked: float = 0.0


class Ray:
    """A `posttrain.execution.cluster.Cluster`. `processes`: of a training; None: one for each GPU of a node."""

    looks_every = 0.1  # Ray keeps that in this process

    def __init__(self, settings: Settings, processes: int | None) -> None:
        self.settings, self.processes = settings, processes
        self._going: dict[Path, _Going] = {}

    def check(self, folder: Path) -> None:
        """See `Cluster.check`. Each node answers."""
        self._connect()
        import ray
        from ray.exceptions import GetTimeoutError, RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        (folder / task.NONCE).write_text(uuid.uuid4().hex, "utf-8")
        hello, asked = ray.remote(ray_node.hello), list[tuple[Any, Any]]()
        for node in _nodes():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            one = hello.options(num_cpus=0, scheduling_strategy=there).remote(str(folder.resolve()), len(asked))
            asked.append((node, one))
        for node, one in list(asked):
            try:
                ray.get(one, timeout=_ANSWERS)
            except GetTimeoutError:
                raise EngineError(
                    f"{node['NodeManagerHostname']} has begun no task in {_ANSWERS:.0f} s: see Ray's logs there",
                    rule="cluster-refuses",
                ) from None
            except RayError as error:
                if node["NodeID"] in [left["NodeID"] for left in _nodes()]:
                    raise EngineError(
                        f"{node['NodeManagerHostname']} cannot run posttrain: {line(error, -1)}. Use one environment "
                        "everywhere",
                        rule="cluster-versions",
                    ) from None
                asked.remove((node, one))  # lost meanwhile
        task.compare(folder, len(asked))

    def submit(self, folder: Path, stage: Mapping[str, Any], shards: int) -> None:
        """See `Cluster.submit`. What an earlier command began has ended with it."""
        import ray

        trains = STAGES[stage["stage"]].trained
        name, count = uuid.uuid4().hex[:8], self._processes() if trains else 1
        each = self._need(self._gpus_of(stage) if shards else min(_most("GPU"), 1))
        places, whole = _places(each), {what: amount * count for what, amount in each.items()}
        if places < count:
            raise EngineError(_no_room(whole), rule="cluster-room")
        if shards or _places(whole):
            work = ray.remote(ray_node.work).options(
                num_cpus=whole["CPU"], num_gpus=whole["GPU"], memory=int(whole["memory"]) or None
            )
            of = min(shards, _SHARES * places)
            parts = [Part(at, of) for at in range(of)] if shards else [None]
            refs = [work.remote(str(folder.resolve()), part, self.settings.cpus) for part in parts]
        else:
            refs = [
                ray.remote(ray_node.train_over_nodes)
                .options(num_cpus=0)
                .remote(str(folder.resolve()), name, count, each)
            ]
        self._going[folder] = _Going(refs, each, count, time.monotonic())

    def ended(self, folder: Path) -> bool:
        """See `Cluster.ended`."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        going = self._going[folder]
        done, going.refs = ray.wait(going.refs, num_returns=len(going.refs), timeout=0)
        for one in done:
            try:
                error = ray.get(one)
            except RayTaskError as raised:
                error = StageError(f"a task of Ray failed: {line(raised, -1)}")
            except RayError as lost:
                error = StageCrashedError(f"Ray lost a task of {folder.name}: {line(lost, 0)}")
            if error:
                self.cancel(folder)
                raise error
        if not going.refs:
            del self._going[folder]
            return True
        now = time.monotonic()
        if now - going.looked > _LOOK_AGAIN:
            going.looked = now
            if _places(going.each) >= going.count:
                going.had_room = now
            elif now - going.had_room > _PATIENCE:
                self.cancel(folder)
                whole = {what: amount * going.count for what, amount in going.each.items()}
                raise EngineError(f"nodes were lost: {_no_room(whole)}", rule="cluster-room")
        return False

    def cancel(self, folder: Path) -> None:
        """See `Cluster.cancel`."""
        import ray

        going = self._going.pop(folder, None)
        for one in going.refs if going else []:
            ray.cancel(one, force=True)

    def _connect(self) -> None:
        try:
            import ray
        except ImportError:
            raise EngineError(
                "`compute.cluster` needs Ray, here and on all nodes: pip install 'posttrain[ray]'",
                rule="cluster-absent",
            ) from None
        if ray.is_initialized():
            return
        address = self.settings.address
        # A task that takes too much memory is for `compute.attempts`; by default Ray runs it again for ever.
        os.environ.setdefault("RAY_task_oom_retries", "0")
        main, before = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise EngineError(
                f"no Ray cluster at `{address}` ({line(error, -1)}): start one with `ray start --head` here and "
                "`ray start --address` on the other nodes, or set `compute.cluster.address`",
                rule="cluster-absent",
            ) from None
        except Exception as error:  # other versions, a full temporary folder: Ray has no class for them
            raise EngineError(
                f"Ray refuses: {line(error, -1)}. It takes the same versions of Python and Ray everywhere, and room "
                "in its temporary folder",
                rule="cluster-refuses",
            ) from None
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)

    def _processes(self) -> int:
        return self.processes or max(1, int(_most("GPU")))

    def _need(self, gpus: float) -> Need:
        return {"CPU": self.settings.cpus, "GPU": gpus, "memory": (self.settings.memory_gib or 0) * (1 << 30)}

    def _gpus_of(self, stage: Mapping[str, Any]) -> float:
        """GPUs of a task that samples or scores: one where there are any, or those of the server that it starts."""
        most, server = _most("GPU"), stage["runtime"].get("server")
        if server and server["start"]:
            return server["devices"] or most
        return min(most, 1)


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _most(what: str) -> float:
    """How much of a resource the node has that has most of it."""
    return max((node["Resources"].get(what, 0) for node in _nodes()), default=0)


def _places(need: Need) -> int:
    """How many such tasks the nodes have room for at once."""
    count = 0
    for node in _nodes():
        count += min(int(node["Resources"].get(what, 0) // amount) for what, amount in need.items() if amount)
    return count


def _no_room(need: Need) -> str:
    def words(amounts: Mapping[str, float]) -> str:
        gib = amounts.get("memory", 0) / (1 << 30)
        return f"{amounts.get('CPU', 0):g} CPUs, {amounts.get('GPU', 0):g} GPUs, {gib:.1f} GiB"

    there = "; ".join(sorted(words(node["Resources"]) for node in _nodes())) or "no node"
    return (
        f"a task needs {words(need)}, and the nodes have {there}. Add nodes, or lower compute.processes, "
        "compute.cluster.cpus or memory_gib"
    )
