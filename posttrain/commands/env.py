"""`posttrain env`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.commands.terminal import json_text, say


def env_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Versions, devices, memory and disk, for a bug report. Shows no token and no password.

    posttrain env
    """
    from posttrain.engines.precision import rates
    from posttrain.system import describe

    found = {**describe(Path()), "products": rates()}
    say(json_text(found) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    cpu, memory, disk = found["cpu"], found["memory"], found["disk"]
    devices = [f"{each['name']}, {_size(each['memory'])}, {each['capability']}" for each in found["devices"]]
    shown = {
        **found["versions"],
        "platform": found["platform"],
        "executable": found["executable"],
        "processor": f"{cpu['name']}, {cpu['usable']} of {cpu['cores']} cores, {cpu['torch_threads']} torch threads",
        "products": ", ".join(f"{name} {rate:.0f}" for name, rate in found["products"].items())
        + " GFLOP/s on one thread",
        "memory": f"{_size(memory['available'])} free of {_size(memory['total'])}",
        "disk": f"{_size(disk['free'])} free of {_size(disk['total'])} at {disk['folder']}",
        "devices": "; ".join(devices) or "no GPU",
        "cuda": found["cuda"] or "none",
        **found["variables"],
    }
    width = max(map(len, shown))
    return [f"{name:<{width}}  {value}" for name, value in shown.items()]


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
