"""Where trackers write: below the run."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = "logs"  # of the run


def at_home(folder: Path) -> None:
    """Tell trackers that choose a place themselves to write below the run's `logs`, unless the user has told them."""
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
    os.environ.setdefault("WANDB_DIR", str(folder))
