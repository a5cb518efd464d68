"""Every model type of docs/models.md through one tiny round, and the page's table.

    python benchmarks/architectures.py [TYPE …]     # default: all, and the table is written; about five minutes

Each type is a random model of two layers with the tokenizer of the tests. The round is the real loop, its stages forked
from one warm process: sampling, reward model, scoring, SFT, pairs and DPO; then once more with LoRA.
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

from tiny_models import KINDS, causal_lm, tokenizer  # noqa: E402 - found through the line above

from posttrain.errors import PosttrainError  # noqa: E402
from posttrain.launch import Forked, Launcher  # noqa: E402
from posttrain.recipe import load  # noqa: E402
from posttrain.rounds import play  # noqa: E402
from posttrain.runner import Runner  # noqa: E402
from posttrain.stage_queue import Silent  # noqa: E402
from posttrain.store import Store  # noqa: E402

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
sft: {{max_steps: 2, per_device_train_batch_size: 4, bf16: false}}
pairs: {{prompts: 8, k: 3, max_new_tokens: 12, margin: 0}}
dpo: {{max_steps: 2, per_device_train_batch_size: 4, bf16: false}}
evaluate: {{k: 1, max_new_tokens: 12}}
promote: always
"""


@dataclass
class Round:
    """What one tiny round gave: metrics by stage, and what it failed with."""

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: str | None = None


class Listening(Silent):
    """Keeps what the stages tell."""

    def __init__(self) -> None:
        self.metrics: dict[str, dict[str, Any]] = {}

    def finished(self, number: int, stage: str, seconds: float, metrics: Any) -> None:
        self.metrics[stage] = {**metrics, "seconds": seconds}


def tiny_round(kind: str, folder: Path, launcher: Launcher, lora: bool = False, **changes: Any) -> Round:
    """One round of the real loop from a random model of this type, in an empty folder."""
    folder.mkdir(parents=True)
    causal_lm(kind, **changes).save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "variety.py").write_text(REWARD, encoding="utf-8")
    for name, count in (("train", 24), ("dev", 4), ("heldout", 4)):
        rows = [{"prompt": f"{name} {number}: " + "say more " * (number % 3)} for number in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    adapters = "{r: 4}" if lora else "null"
    (folder / "recipe.yaml").write_text(RECIPE.format(model=folder / "model", lora=adapters), encoding="utf-8")
    recipe, told, store = load(str(folder / "recipe.yaml"), []), Listening(), Store(folder / "run")
    with store.session():
        try:
            play(recipe, Runner(store, launcher, told, 1, recipe), 1)
        except PosttrainError as error:
            return Round(told.metrics, str(error))
    return Round(told.metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", default=list(KINDS))
    asked = parser.parse_args()
    launcher = Forked()
    launcher.warm()
    with tempfile.TemporaryDirectory() as folder:
        for kind in asked.types:
            for lora in (False, True):
                found = tiny_round(kind, Path(folder) / f"{kind}-{lora}", launcher, lora)
                print(
                    kind,
                    lora,
                    found.error,
                    {k: (round(v["seconds"], 1), v.get("fallback")) for k, v in found.metrics.items()},
                    flush=True,
                )


if __name__ == "__main__":
    main()
