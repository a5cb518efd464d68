"""Scripts of data/ and reward/, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA, REWARD = ROOT / "data", ROOT / "reward"


def load(path: Path) -> Any:
    """The script as a module of its name, which later ones can import."""
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
