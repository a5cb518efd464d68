"""What the filters are, what they find, and what they take by mistake: the tables of docs/filters.md.

    python benchmarks/filter_quality.py --gsm8k FOLDER [--page FILE] [--embed FOLDER]

- Each filter with its keys, as its class says.
- Recall and precision on the planted corpora of tests/support/planted.py and planted_copies.py: a line a `Corpus`.
- The rules on GSM8K's training questions and solutions, all of them clean: what is dropped, and why.
- The rules on its 5,276 solutions written by models: is what they drop more often wrong?
- With --embed, a folder of an embedding model: `semantic-duplicates` by it and by words, for docs/duplicates.md. Only
  this is then measured.

FOLDER holds train.jsonl and example_model_solutions.jsonl of github.com/openai/grade-school-math; without it its two
tables stay as they are. Each filter is measured by itself, with its default keys. Planted faults are made up by those
who wrote the filters: a figure near 1 says that a filter does what it says, not that nothing gets past it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from inspect import cleandoc
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic.fields import FieldInfo
from tables import fill

from posttrain import filters
from posttrain.filters import FILTERS, FilterContext
from posttrain.filters.base import Scope

ROOT = Path(__file__).parent.parent
PAGE, DUPLICATES = (ROOT / "docs" / name for name in ("filters.md", "duplicates.md"))
THRESHOLDS = (0.95, 0.9, 0.8, 0.7, 0.6)  # of semantic-duplicates
sys.path.insert(0, str(ROOT / "tests"))
# The rules: what looks at one row's text and needs neither a model nor a set to compare with.
RULES: list[dict[str, Any]] = [
    {"use": "format"},
    {"use": "length"},
    {"use": "repetition"},
    {"use": "loop"},
    {"use": "truncated"},
    {"use": "residue"},
    {"use": "emphasis"},
    {"use": "language"},
    {"use": "unsafe-words"},
    {"use": "refusals"},
    {"use": "pii", "mode": "drop"},
]
LOOKS_AT: dict[Scope, str] = {
    "row": "a row",
    "prompt": "all rows of a prompt",
    "corpus": "a row, and on all rows before it",
    "whole": "a row, and on the whole corpus",
}

Row = dict[str, Any]


class Dropped(NamedTuple):
    filter: str
    reason: str
    figure: float | None
    row: Row


def reference() -> str:
    """A section a filter: its docstring, and its keys as they are declared."""
    sections = []
    for name, kind in FILTERS.items():
        keys = [
            (f"`{key}`", _default(info), info.description or "")
            for key, info in kind.model_fields.items()
            if key != "use"
        ]
        table_of_keys = table(("key", "default", "what it is"), keys) if keys else "It has no keys."
        text = cleandoc(kind.__doc__ or "")
        sections.append(f"### {name}\n\n{text}\n\nA verdict depends on {LOOKS_AT[kind.scope]}.\n\n{table_of_keys}")
    return "\n" + "\n\n".join(sections) + "\n"


def _default(key: FieldInfo) -> str:
    if key.is_required():
        return "must be given"
    text = json.dumps(key.get_default(call_default_factory=True), ensure_ascii=False)
    return f"`{text if len(text) < 100 else text[:60] + ' …'}`"


def planted() -> str:
    from support.planted import CORPORA, measure
    from support.planted_copies import COPIES, ON_JUDGES, fooled

    lines = []
    for figure in [*map(measure, [*CORPORA, *COPIES]), *(fooled(*one) for one in ON_JUDGES)]:
        recall, precision = f"{figure.recall:.3f}", f"{figure.precision:.3f}"
        lines.append((figure.name, figure.planted, figure.found, recall, figure.clean, figure.wrong, precision))
    return table(("filter", "planted", "found", "recall", "clean", "wrongly taken", "precision"), lines)


def semantic(model: Path) -> str:
    from support.planted import measure
    from support.planted_copies import same_meaning

    lines = []
    for embed in ("tfidf", str(model)):
        for threshold in THRESHOLDS:
            for figure in map(measure, same_meaning(embed=embed, threshold=threshold)):
                name = f"`{embed}`" if embed == "tfidf" else model.resolve().name
                lines.append(
                    (name, f"{threshold}", figure.name, f"{figure.found} of {figure.planted}", f"{figure.recall:.2f}",
                     f"{figure.wrong} of {figure.clean}", f"{figure.precision:.2f}" if figure.found else "–")
                )  # fmt: skip
    return table(("embed", "threshold", "said again in", "found", "recall", "wrongly taken", "precision"), lines)


def clean(folder: Path) -> str:
    rows = read(folder / "train.jsonl")
    texts = {
        "questions": [{"prompt": "What is asked here?", "completion": row["question"]} for row in rows],
        "solutions": [{"prompt": row["question"], "completion": row["answer"]} for row in rows],
    }
    lines = []
    for name, given in texts.items():
        dropped = [one for rule in RULES for one in filter_rows(given, [rule])]
        for rule, reason in sorted({(one.filter, one.reason) for one in dropped}):
            which = [one for one in dropped if (one.filter, one.reason) == (rule, reason)]
            figures = sorted(one.figure for one in which if one.figure is not None)
            lines.append((name, len(given), rule, reason, len(which), f"{figures[0]:.3g} to {figures[-1]:.3g}"))
        all_rules = {one.row["completion"] for one in dropped}
        lines.append((name, len(given), "**all**", "", len(all_rules), ""))
    return table(("text", "rows", "filter", "reason", "dropped", "figures"), lines)


def solutions(folder: Path) -> str:
    rows = [
        {"prompt": problem["question"], "completion": written["solution"], "right": written["is_correct"]}
        for problem in read(folder / "example_model_solutions.jsonl")
        for written in problem.values()
        if isinstance(written, dict)
    ]
    lines = []
    for name, chain in [*((rule["use"], [rule]) for rule in RULES), ("**all, in this order**", RULES)]:
        lost = [one.row["right"] for one in filter_rows(rows, chain)]
        kept = sum(row["right"] for row in rows) - sum(lost), len(rows) - len(lost)
        lines.append((name, kept[1], share(*kept), len(lost), share(sum(lost), len(lost))))
    return table(("filter", "kept", "of these right", "dropped", "of these right"), lines)


def filter_rows(rows: Sequence[Row], entries: Sequence[dict[str, Any]]) -> list[Dropped]:
    """What a chain of filters drops of the rows."""
    batches = pa.Table.from_pylist(list(rows)).to_batches(max_chunksize=4096)
    parts = filters.run(batches, filters.parse(entries), FilterContext())
    lost = [row for part in parts for row in part.dropped.to_pylist()]
    return [Dropped(row["filter"], row["reason"], row["figure"], row) for row in lost]


def share(right: int, of: int) -> str:
    """A share and its 95 % interval (Wilson)."""
    from scipy.stats import binomtest

    if not of:
        return "–"
    low, high = binomtest(right, of).proportion_ci(method="wilson")
    return f"{right / of:.3f} [{low:.3f}, {high:.3f}]"


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    shown = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *shown])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, help="the folder of GSM8K's files")
    parser.add_argument("--page", type=Path, help="has the markers already")
    parser.add_argument("--embed", type=Path, help="the folder of an embedding model")
    given = parser.parse_args()
    if given.embed:
        page = given.page or DUPLICATES
        page.write_text(fill(page.read_text(encoding="utf-8"), "semantic", semantic(given.embed)), encoding="utf-8")
        return
    folder = given.gsm8k
    target = given.page or PAGE
    page = fill(target.read_text(encoding="utf-8"), "filters", reference())
    page = fill(page, "planted", planted())
    if folder:
        page = fill(page, "gsm8k-clean", clean(folder))
        page = fill(page, "gsm8k-solutions", solutions(folder))
    target.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
