"""A real Slurm of two nodes on this machine: slurmctld and two slurmd, without accounting."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")


def installed() -> bool:
    """Whether the daemons are there, and may be started: Debian's slurm-wlm and munge, and root."""
    return os.geteuid() == 0 and all(shutil.which(name) for name in DAEMONS)


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _config(folder: Path) -> str:
    host = socket.gethostname()
    nodes = [f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free()} CPUs=1" for n in (1, 2)]
    return "\n".join(
        [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={_free()}",
            f"SlurmdPort={_free()}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool-%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd-%n.pid",
            f"SlurmctldLogFile={folder}/slurmctld.log",
            f"SlurmdLogFile={folder}/slurmd-%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SchedulerParameters=sched_interval=1,bf_interval=1",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "ReturnToService=2",
            "KillWait=5",
            "RequeueExit=85",
            "MpiDefault=none",
            *nodes,
            "PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP",
            "",
        ]
    )


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """Within it `sbatch` and the like talk to this cluster."""
    (folder / "state").mkdir(parents=True)
    conf = folder / "slurm.conf"
    conf.write_text(_config(folder))
    _munge()
    os.environ["SLURM_CONF"] = str(conf)
    started = [subprocess.Popen(["slurmctld", "-D", "-f", conf])]
    started += [subprocess.Popen(["slurmd", "-D", "-N", name, "-f", conf]) for name in ("n1", "n2")]
    try:
        end = time.monotonic() + 30
        while _nodes() != "2 idle":
            if time.monotonic() > end:
                raise RuntimeError(f"Slurm is not up: {_nodes()}; logs in {folder}")
            time.sleep(0.2)
        yield
    finally:
        subprocess.run(["scancel", "--full", "--user=root"], capture_output=True, check=False)
        for one in reversed(started):
            one.terminate()
        for one in started:
            try:
                one.wait(30)
            except subprocess.TimeoutExpired:
                one.kill()
        del os.environ["SLURM_CONF"]


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Ends all jobs once the time is up, so that whoever waits for one fails, and says what the cluster says."""

    def end() -> None:
        for words in (["scontrol", "show", "node"], ["scontrol", "show", "job"]):
            sys.stderr.write(subprocess.run(words, capture_output=True, text=True, check=False).stdout)
        subprocess.run(["scancel", "--full", "--user=root"], check=False)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _nodes() -> str:
    """How many nodes are in which state."""
    return subprocess.run(["sinfo", "-h", "-o", "%D %t"], capture_output=True, text=True, check=False).stdout.strip()


def _munge() -> None:
    """Starts munged, which signs messages, unless it runs."""
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
        return
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"], check=True, capture_output=True)
