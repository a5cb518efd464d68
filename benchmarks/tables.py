"""Puts the figures under benchmarks/results/ into the pages of docs/, each table between its markers.

    python benchmarks/tables.py [--docs FOLDER]

`results/NAME.json` is what `benchmarks/NAME.py --json` wrote; `results/NAME.cuda.json` the same from a GPU. In the
text, `<!-- NAME -->` and `<!-- /NAME -->` (or `NAME.cuda`) stand around the table. A table without figures stays as it
is; figures without a place are refused.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGES = {
    "kills": "nothing-is-lost.md",
    "safety": "nothing-is-lost.md",
    "plan": "commands.md",
}  # all others stand in speed.md


def filters(rows: list[Any], device: str) -> str:
    import filters

    return filters.table([filters.Figure(**row) for row in rows])


def growth(rows: list[Any], device: str) -> str:
    import growth

    return growth.table([growth.Figure(**row) for row in rows])


def glued_trl(rows: list[Any], device: str) -> str:
    import glued_trl
    from measuring import Cost

    return glued_trl.table(
        [
            glued_trl.Turn(**{**row, "steps": {name: Cost(**spent) for name, spent in row["steps"].items()}})
            for row in rows
        ]
    )


def kills(rows: dict[str, Any], device: str) -> str:
    import kills

    return kills.table(rows)


def loop(rows: list[Any], device: str) -> str:
    import loop

    return loop.table([loop.Figure(**row) for row in rows])


def mfu(rows: list[Any], device: str) -> str:
    import mfu

    return mfu.table([mfu.Figure(**row) for row in rows])


def plan(rows: dict[str, Any], device: str) -> str:
    import plan

    return plan.table(rows)


def real_training(rows: list[Any], device: str) -> str:
    import real_training

    return real_training.table([real_training.Figure(**row) for row in rows])


def safety(rows: dict[str, Any], device: str) -> str:
    import safety

    return safety.table(rows)


def sampling(rows: list[Any], device: str) -> str:
    import sampling

    return sampling.table([sampling.Figure(**row) for row in rows], device)


def scoring(rows: list[Any], device: str) -> str:
    import scoring

    return scoring.table([scoring.Figure(**row) for row in rows], device)


def training(rows: list[Any], device: str) -> str:
    import training

    return training.table([training.Figure(**row) for row in rows])


# The scripts are imported only where there are figures: they import torch.
TABLES: dict[str, Callable[[Any, str], str]] = {
    one.__name__: one
    for one in (filters, glued_trl, growth, kills, loop, mfu, plan, real_training, safety, sampling, scoring, training)
}


def fill(page: str, name: str, table: str) -> str:
    """The page with what stands between the markers of `name` replaced.

    Raises:
        ValueError: the page does not have them once.
    """
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    page, times = pattern.subn(lambda found: f"{found[1]}{table}\n{found[2]}", page)
    if times != 1:
        raise ValueError(f"<!-- {name} --> and <!-- /{name} --> stand {times} times in the page, not once")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS)
    docs = parser.parse_args().docs
    for path in sorted((HERE / "results").glob("*.json")):
        script, _, device = path.stem.partition(".")
        page = docs / PAGES.get(script, "speed.md")
        table = TABLES[script](json.loads(path.read_text(encoding="utf-8")), device or "cpu")
        page.write_text(fill(page.read_text(encoding="utf-8"), path.stem, table), encoding="utf-8")


if __name__ == "__main__":
    main()
