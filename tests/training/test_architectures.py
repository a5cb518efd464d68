"""The model types of docs/models.md through one tiny round of the real loop, and what is refused before it begins."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import causal_lm, tokenizer
from transformers import AutoConfig

from posttrain.engines.load import load
from posttrain.errors import ModelError
from posttrain.execution.launcher import InProcess
from posttrain.training import architecture

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))  # the script and its table

import architectures  # noqa: E402 - found through the line above

PAGE = (ROOT / "docs" / "models.md").read_text("utf-8")
TABLE = {kind: cells.split(" | ") for kind, cells in re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.M)}
# As different as they come: plain; learned positions; sliding windows; experts; a head of ours; no attention at all.
REPRESENTATIVES = ["llama", "gpt2", "gemma3_text", "qwen3_moe", "olmoe", "mamba"]


def test_the_page_has_a_row_for_each_type_and_no_type_fails() -> None:
    assert list(TABLE) == list(architectures.TYPES)
    for kind, cells in TABLE.items():
        *stages, lora = [cell.partition(" (")[0] for cell in cells]
        assert set(stages) <= {"yes", "slow way"}, kind
        assert lora in ("yes", "no"), kind


def check_round(kind: str, folder: Path) -> None:
    """Every stage of a tiny round ends, as fast or slow as the page says."""
    found = architectures.tiny_round(kind, folder / kind, InProcess())
    assert found.error is None
    said = [cell.partition(" (")[0] for cell in TABLE[kind]]
    assert [verdict for verdict, _ in found.cells().values()] == said[:-1]
    assert "dpo" in found.metrics and "promote" in found.metrics


@pytest.mark.slow
@pytest.mark.parametrize("kind", REPRESENTATIVES)
def test_a_tiny_round(kind: str, tmp_path: Path) -> None:
    check_round(kind, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in architectures.TYPES if kind not in REPRESENTATIVES])
def test_a_tiny_round_of_each_other_type(kind: str, tmp_path: Path) -> None:
    check_round(kind, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", architectures.TYPES)
def test_a_tiny_round_with_lora(kind: str, tmp_path: Path) -> None:
    error = architectures.tiny_round(kind, tmp_path / kind, InProcess(), lora=True).error
    assert (error is None) == (TABLE[kind][-1] == "yes")


def folder_of(kind: str, folder: Path, **config: Any) -> Path:
    AutoConfig.for_model(kind, **config).save_pretrained(folder)
    return folder


SMALL: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LORA = {"r": 2, "target_modules": ["out_proj"]}


@pytest.mark.parametrize(
    ("kind", "lora", "rule"),
    [
        ("t5", None, "architecture-no-causal-lm"),
        ("bert", None, "architecture-no-reward-head"),
        ("mamba", LORA, "architecture-lora"),  # peft: out_proj is incompatible
        ("llama", LORA, "architecture-lora"),  # peft: there is no such layer
        ("llama", {"r": 2, "target_modules": "all-linear"}, None),
        ("mamba", {"r": 2, "target_modules": "all-linear"}, None),
        ("olmoe", {"r": 2, "target_modules": "all-linear"}, None),
    ],
)
def test_a_type_that_cannot_be_trained_is_refused_by_its_config(
    tmp_path: Path, kind: str, lora: dict[str, Any] | None, rule: str | None
) -> None:
    folder = folder_of(kind, tmp_path, **SMALL)
    if rule is None:
        architecture.check(folder, lora, reward_model=True)
        return
    with pytest.raises(ModelError) as caught:
        architecture.check(folder, lora, reward_model=True)
    assert (caught.value.rule, caught.value.exit_code, caught.value.file) == (rule, 2, str(folder))
    assert caught.value.hint


def test_a_head_is_asked_for_only_where_a_reward_model_is_trained(tmp_path: Path) -> None:
    architecture.check(folder_of("bert", tmp_path, **SMALL), None, reward_model=False)


def test_a_config_that_asks_for_router_logits_is_sampled_from_without_them(tmp_path: Path) -> None:
    """A training leaves that in the config; of a mask longer than the forward, the balance of experts cannot be had."""
    model = causal_lm("gpt_oss")
    model.config.output_router_logits = True
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path, "float32", "cpu").model.config.output_router_logits is False
