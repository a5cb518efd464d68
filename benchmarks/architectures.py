"""Every model type of docs/models.md through one tiny round, and the page's table.

    python benchmarks/architectures.py [TYPE …]     # default: all, and the table is written; about five minutes

Each type is a random model of two layers with the tokenizer of the tests. The round is the real loop, all in this one
warm process: sampling, reward model, scoring, SFT, pairs and DPO; then once more with LoRA.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.tiny_models import KINDS, causal_lm, tokenizer  # noqa: E402 - found through the line above
from tables import fill  # noqa: E402
from transformers.utils import logging  # noqa: E402

from posttrain import load_recipe  # noqa: E402
from posttrain.errors import PosttrainError  # noqa: E402
from posttrain.execution.launcher import InProcess, Launcher  # noqa: E402
from posttrain.execution.progress import Silent  # noqa: E402
from posttrain.execution.runner import Runner  # noqa: E402
from posttrain.loop import play  # noqa: E402
from posttrain.storage.store import Store  # noqa: E402

REWARD = """
def variety(prompts, completions, **columns):
    return [len(set(answer[-1]["content"])) / 10 + len(answer[-1]["content"]) / 1000 for answer in completions]
"""
RECIPE = """
model: {{path: {model}, dtype: float32, lora: {lora}}}
compute: {{stages_at_once: 1, workers: 1}}
engine: {{dtype: float32}}
prompts:
  train: {{path: ./train.jsonl}}
  dev: {{path: ./dev.jsonl}}
  heldout: {{path: ./heldout.jsonl}}
reward: [{{use: ./variety.py}}, {{use: reward-model}}]
preferences: {{prompts: 12, k: 3, max_new_tokens: 12}}
reward_model: {{max_steps: 2, per_device_train_batch_size: 4, bf16: false}}
samples: {{prompts: 8, k: 3, max_new_tokens: 12}}
filters: [{{use: best-of-k}}]
sft: {{max_steps: 2, per_device_train_batch_size: 4, bf16: false, packing: true, max_length: 90}}
pairs: {{prompts: 8, k: 3, max_new_tokens: 12, margin: 0}}
dpo: {{max_steps: 2, per_device_train_batch_size: 4, bf16: false}}
evaluate: {{k: 1, max_new_tokens: 4}}
promote: always
"""


COLUMNS = ("sampling", "scoring", "SFT", "DPO", "reward model", "LoRA")
# Those that users bring. The tests know more; a window shorter than a tiny row would make each of these slow.
TYPES = tuple(kind for kind in KINDS if kind != "gemma")
PAGE = ROOT / "docs" / "models.md"


@dataclass
class Round:
    """What one tiny round gave: metrics by stage, and what it failed with."""

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None

    def cells(self) -> dict[str, tuple[str, str | None]]:
        """For each column but LoRA: `yes`, `slow way` or `no`, and why."""
        stages = {"sampling": "answers_samples", "scoring": "reward_model", "SFT": "sft", "DPO": "dpo"}
        stages["reward model"] = "reward_model"
        return {column: self._cell(column, stage) for column, stage in stages.items()}

    def _cell(self, column: str, stage: str) -> tuple[str, str | None]:
        if stage not in self.metrics:
            return "no", self.error
        reasons = self.metrics[stage].get("fallback", [])
        of_column = [why for why in reasons if why.startswith("answers are scored") == (column == "scoring")]
        return ("slow way", of_column[0]) if of_column else ("yes", None)


class Listening(Silent):
    """Keeps what the stages tell."""

    def __init__(self) -> None:
        self.metrics: dict[str, dict[str, Any]] = {}

    def finished(self, number: int, stage: str, seconds: float, metrics: Any) -> None:
        self.metrics[stage] = {**metrics, "seconds": seconds}


def tiny_round(kind: str, folder: Path, launcher: Launcher, lora: bool = False, **changes: Any) -> Round:
    """One round of the real loop from a random model of this type, in an empty folder."""
    folder.mkdir(parents=True)
    if "sliding_window" in KINDS[kind]:
        changes = {"sliding_window": 4096, **changes}
    causal_lm(kind, **changes).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "variety.py").write_text(REWARD, encoding="utf-8")
    for name, count in (("train", 24), ("dev", 4), ("heldout", 4)):
        rows = [{"prompt": f"{name} {number}: " + "say more " * (number % 3)} for number in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    adapters = "{r: 4}" if lora else "null"
    (folder / "recipe.yaml").write_text(RECIPE.format(model=folder / "model", lora=adapters), encoding="utf-8")
    recipe, told, store = load_recipe(str(folder / "recipe.yaml"), []), Listening(), Store(folder / "run")
    with store.session():
        try:
            play(recipe, Runner(store, launcher, told, 1, recipe), 1)
        except PosttrainError as error:
            return Round(told.metrics, str(error))
    return Round(told.metrics)


def row(kind: str, folder: Path, launcher: Launcher) -> dict[str, tuple[str, str | None]]:
    """The cells of a type, by column."""
    plain, adapted = (tiny_round(kind, folder / f"{kind}-{lora}", launcher, lora) for lora in (False, True))
    return {**plain.cells(), "LoRA": ("no", adapted.error) if adapted.error else ("yes", None)}


def table(rows: dict[str, dict[str, tuple[str, str | None]]]) -> str:
    """The rows as Markdown, with the reasons, each once, numbered below."""
    reasons: dict[str, int] = {}
    lines = [f"| type | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for kind, cells in rows.items():
        said = []
        for verdict, why in (cells[column] for column in COLUMNS):
            said.append(f"{verdict} ({reasons.setdefault(why, len(reasons) + 1)})" if why else verdict)
        lines.append(f"| `{kind}` | {' | '.join(said)} |")
    return "\n".join([*lines, "", *(f"{number}. {why}" for why, number in reasons.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="of those in the page; then the table is shown, not written")
    asked = parser.parse_args().types
    logging.disable_progress_bar()
    launcher, rows = InProcess(), {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in asked or TYPES:
            rows[kind] = row(kind, Path(folder), launcher)
            print(kind, {column: verdict for column, (verdict, _) in rows[kind].items()}, flush=True)
    if asked:
        print(table(rows))
    else:
        PAGE.write_text(fill(PAGE.read_text("utf-8"), "architectures", table(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
