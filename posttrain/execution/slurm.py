"""Slurm: jobs by sbatch, from a script that can be looked at and replaced.

What finished is read from the tasks' markers. Slurm is asked only whether a job that has none is still there: its
accounting may be off, and it forgets jobs after minutes.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.config.cluster import Slurm as Settings
from posttrain.errors import EngineError, StageCrashedError
from posttrain.execution import task
from posttrain.execution.template import Template
from posttrain.stages.registry import STAGES
from posttrain.storage.files import read_json, write_durably

SCRIPT = Path(__file__).with_name("slurm.sh")
_JOBS = "slurm.json"  # in scratch: what was submitted
_ASK_AGAIN = 5.0  # seconds between questions to Slurm
_ALIVE = {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STAGE_OUT", "COMPLETING"}


class Slurm:
    """A `posttrain.execution.cluster.Cluster`. `processes`: of a training, over all of its nodes; None: its GPUs."""

    looks_every = 1.0  # files of a shared folder

    def __init__(self, settings: Settings, processes: int | None) -> None:
        self.settings, self.processes = settings, processes
        self._asked: dict[Path, float] = {}

    def check(self, folder: Path) -> None:
        """See `Cluster.check`. A job on as many nodes as a training has; the command waits until it has run."""
        (folder / task.NONCE).write_text(uuid.uuid4().hex, "utf-8")
        path = folder / "slurm.sh"
        command = ["srun", shlex.quote(sys.executable), "-m", "posttrain", "stage", shlex.quote(str(folder))]
        words = " ".join([*command, "--task", "hello"])
        path.write_text(
            self._filled(folder, "check", folder, words, shlex.quote(str(folder)), 0, self.settings.nodes), "utf-8"
        )
        try:
            _call(["sbatch", "--wait", "--parsable", str(path)])
        except EngineError as error:
            logs = "".join(one.read_text("utf-8", "replace") for one in folder.glob("slurm-*.txt"))
            raise EngineError(f"{error.args[0]} {logs[-1000:]}".strip(), rule=error.rule) from None
        task.compare(folder, self.settings.nodes)

    def submit(self, folder: Path, stage: Mapping[str, Any], shards: int) -> None:
        """See `Cluster.submit`."""
        tasks = min(shards, self.settings.tasks)
        record = folder / "scratch" / _JOBS
        if record.exists():
            before = read_json(record)
            if before["tasks"] == max(tasks, 1) and before["training"] == (tasks == 0) and _states(before["job"]):
                return
        submission = uuid.uuid4().hex[:8]
        path = folder / "scratch" / "slurm.sh"
        path.write_text(self.script(folder, stage["stage"], submission, tasks, STAGES[stage["stage"]].trained), "utf-8")
        said = _call(["sbatch", "--parsable", str(path)])
        job = said.strip().partition(";")[0]
        made = {"job": job, "submission": submission, "tasks": max(tasks, 1), "training": tasks == 0}
        write_durably(record, json.dumps(made))

    def script(self, folder: Path, role: str, submission: str, tasks: int, trains: bool = True) -> str:
        """The batch script of a stage: all of it where `tasks` is 0, else an array of so many tasks. `trains`: it has
        processes on as many nodes as are set for that."""
        if tasks:
            ends = shlex.quote(str(task.marker(folder, submission, 0).parent)) + "/$SLURM_ARRAY_TASK_ID.json"
        else:
            ends = shlex.quote(str(task.artifact(folder)))
        command = self._command(folder, submission, tasks, trains)
        return self._filled(
            folder, role, folder / "scratch", command, ends, tasks, self.settings.nodes if trains else 1
        )

    def _filled(self, folder: Path, role: str, log: Path, command: str, ends: str, tasks: int, nodes: int) -> str:
        """The script with all that it leaves open. `log`: the folder of its output; `ends`: a file that is there when
        its work is done."""
        one = self.settings
        given = {
            "job-name": f"posttrain-{role}",
            "output": log / ("slurm-%A-%a.txt" if tasks else "slurm-%j.txt"),
            "open-mode": "append",
            "signal": f"B:USR1@{one.warning}",
            "partition": one.partition,
            "account": one.account,
            "time": one.time,
            "gres": one.gres,
            "mem": one.memory,
            "cpus-per-task": one.cpus,
            **({"array": f"0-{tasks - 1}", "ntasks": 1} if tasks else {"nodes": nodes, "ntasks-per-node": 1}),
        }
        options = [f"--{name}={value}" for name, value in given.items() if value is not None]
        lines = [f"#SBATCH {option}" for option in [*options, "--requeue", *one.options]]
        template = Path(one.template) if one.template else SCRIPT
        return Template(template.read_text("utf-8")).substitute(
            options="\n".join(lines),
            stage=role,
            folder=folder,
            soon=shlex.quote(str(log / "soon")),
            training=int(tasks == 0),
            marker=ends,
            command=command,
        )

    def _command(self, folder: Path, submission: str, tasks: int, trains: bool) -> str:
        stage = ["-m", "posttrain", "stage", shlex.quote(str(folder)), "--task", submission]
        python = shlex.quote(sys.executable)
        if tasks:
            return " ".join([python, *stage, "--part", f"$SLURM_ARRAY_TASK_ID/{tasks}"])
        if not trains:
            return " ".join([python, *stage])
        nodes, gpus = self.settings.nodes, "gpu" in (self.settings.gres or "")
        each = "gpu" if self.processes is None and gpus else str((self.processes or nodes) // nodes)
        if each == "1" and nodes == 1:
            return " ".join([python, *stage])
        torchrun = [
            *["srun", "--kill-on-bad-exit=1", python, "-m", "torch.distributed.run", f"--nnodes={nodes}"],
            *[f"--nproc-per-node={each}", "--max-restarts=0", "--rdzv-id=$SLURM_JOB_ID", "--rdzv-backend=c10d"],
            '--rdzv-endpoint="$host":$((20000 + SLURM_JOB_ID % 20000))',
        ]
        return " ".join([*torchrun, *stage])

    def ended(self, folder: Path) -> bool:
        """See `Cluster.ended`."""
        if task.is_there(task.artifact(folder)):
            return True
        made = read_json(folder / "scratch" / _JOBS)
        markers = [task.marker(folder, made["submission"], index) for index in range(made["tasks"])]
        there = [path for path in markers if task.is_there(path)]
        for path in there:
            error = task.error_in(path)
            if error:
                self.cancel(folder)
                raise error
        if len(there) == len(markers) and not made["training"]:
            (folder / "scratch" / _JOBS).unlink()
            return True
        if time.monotonic() - self._asked.get(folder, 0.0) < _ASK_AGAIN:
            return False
        self._asked[folder] = time.monotonic()
        if _states(made["job"]):
            return False
        over = all(map(task.is_there, [task.artifact(folder)] if made["training"] else markers))
        if not over:  # looked at again, since that may have come meanwhile
            self.cancel(folder)
            log = folder / "scratch" / "slurm-*.txt"
            raise StageCrashedError(f"Slurm's job {made['job']} ended before its work was done; log: {log}")
        return False

    def cancel(self, folder: Path) -> None:
        """See `Cluster.cancel`."""
        record = folder / "scratch" / _JOBS
        if record.exists():
            subprocess.run(["scancel", read_json(record)["job"]], capture_output=True, check=False)
            record.unlink()


def _states(job: str) -> set[str]:
    """The states of a job's tasks that are not over; empty where all are, or Slurm has forgotten it."""
    done = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, check=False)
    words = [word.partition("=")[2] for word in done.stdout.split() if word.startswith("JobState=")]
    return {word for word in words if word in _ALIVE}


def _call(words: Sequence[str]) -> str:
    if shutil.which(words[0]) is None:
        raise EngineError(
            f"`{words[0]}` is not installed here: run the command on a node of the cluster that can submit jobs",
            rule="cluster-absent",
        )
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"Slurm refuses the job: {done.stderr.strip()}", rule="cluster-refuses")
    return done.stdout
