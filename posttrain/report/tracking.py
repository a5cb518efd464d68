"""Sends figures to the trackers in `report_to`. Not part of any cache key.

A training's own metrics are sent from its stage (posttrain.training.trackers), under the name `round-1/sft`. Here is
what there is one of in a run: the series over rounds, under the name `rounds`, a point a round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posttrain.errors import InputError
from posttrain.report.reading import open_run
from posttrain.report.status import round_figures
from posttrain.storage.logs import FOLDER, at_home
from posttrain.storage.store import Store

SERIES = "rounds"


def check(report_to: Sequence[str]) -> None:
    """Raises InputError when a tracker is not installed."""
    for backend in report_to:
        if find_spec(backend) is None:
            raise InputError(
                f"report_to: {backend} is not installed", hint=f"pip install {backend}", rule="recipe-package"
            )


def values(shown: Mapping[str, Any]) -> dict[str, float]:
    """A round of `status` as plain numbers by name, such as `heldout/pass@1`; unknown ones are left out."""
    found: dict[str, float] = {}
    for name, figures in (shown.get("evaluate") or {}).items():
        for key, figure in figures.items():
            value = figure.get("value") if isinstance(figure, Mapping) else figure
            if isinstance(value, int | float):
                found[f"{name}/{key}"] = value
    model = (shown.get("reward_model") or {}).get("pair_accuracy")
    if model and model["value"] is not None:
        found["reward_model/pair_accuracy"] = model["value"]
    return found


def send(backend: str, project: str, folder: Path, number: int, figures: Mapping[str, float]) -> None:
    """Add one round to the series."""
    at_home(folder)
    match backend:
        case "tensorboard":
            _tensorboard(folder / SERIES, number, figures)
        case "trackio":
            import trackio  # pyright: ignore[reportMissingImports]  # an extra of the user's choice

            trackio.init(project=project, name=SERIES, resume="allow")
            trackio.log(dict(figures), step=number)
            trackio.finish()
        case "wandb":
            import wandb  # pyright: ignore[reportMissingImports]  # an extra of the user's choice

            with wandb.init(project=project, name=SERIES, id=f"{project}-{SERIES}", resume="allow") as run:
                run.define_metric("*", step_metric="round")
                run.log({"round": number, **figures})


def _tensorboard(folder: Path, number: int, figures: Mapping[str, float]) -> None:
    """As torch's SummaryWriter does it, without torch: this runs in the command's own process."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  # made by protoc
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  # the same
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    points = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
    writer = EventFileWriter(str(folder))
    writer.add_event(Event(step=number, wall_time=time.time(), summary=Summary(value=points)))
    writer.close()


class Tracked:
    """Sends each round, once it is done, to the recipe's trackers."""

    def __init__(self, run: Store, project: str, report_to: Sequence[str]) -> None:
        self.run, self.project, self.report_to = run, project, report_to

    def round_done(self, number: int, ran: bool) -> None:
        if not ran or not self.report_to:
            return
        shown = round_figures(open_run(self.run.root).rounds[number])
        for backend in self.report_to:
            try:
                send(backend, self.project, self.run.root.resolve() / FOLDER, number, values(shown))
            except Exception as error:  # an outage of theirs is no reason to stop a run
                why = f"{type(error).__name__}: {error}"
                logging.getLogger(__name__).warning("round %d was not sent to %s: %s", number, backend, why)
