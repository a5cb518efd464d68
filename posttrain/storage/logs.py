"""The folder that trackers write to: `logs` in the run."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "logs"  # of the run


def at_home(folder: Path) -> None:
    """Makes trackers that choose their own folder write below the run's `logs`, unless the user set another."""
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
    os.environ.setdefault("WANDB_DIR", str(folder))
