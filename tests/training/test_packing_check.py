"""Rows are packed only where the model's own forward gives the same; else they are separate, and it is said why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.dpo import PAIRS, loss, policy, trainer
from support.ranking import PAIRS as RANKED
from support.tiny_models import PAD, causal_lm, reward_model, tokenizer
from transformers import AutoTokenizer
from trl import DPOConfig, RewardConfig, SFTConfig

from posttrain.commands.terminal import Terminal
from posttrain.storage.pieces import Pieces
from posttrain.training.packing import answer_log_probs, refusal
from posttrain.training.ranking import RankingCollator, RankingTrainer, ranked_rows
from posttrain.training.rows import pair_rows, sft_rows
from posttrain.training.trainers import AnswerSFTTrainer, Llama3DPOTrainer, PairCollator

BASE = Path(__file__).parents[2] / "data" / "tiny-base"
ALONE: dict[str, Any] = {"use_cpu": True, "bf16": False, "activation_checkpointing": False, "report_to": "none"}


def in_a_row(model: Any) -> Any:
    """The model, but of a kind that takes no positions: it counts the tokens of a row, as many do."""
    whole = model.forward
    model.forward = lambda *given, position_ids=None, **named: whole(*given, **named)
    return model


@pytest.mark.parametrize(
    ("apart", "fits"), [(0.0, True), (0.9e-4, True), (1.1e-4, False), (-1.0, False), (math.nan, False)]
)
def test_what_differs_by_more_than_a_ten_thousandth_is_refused(apart: float, fits: bool) -> None:
    said = refusal(causal_lm("llama"), 20, lambda packed: torch.tensor([-0.5, apart if packed else 0.0]))
    assert (said is None) == fits
    assert fits or "llama gives other values on packed rows" in str(said)


def test_a_forward_that_fails_is_refused_with_its_words() -> None:
    def measured(packed: bool) -> torch.Tensor:
        if packed:
            raise ValueError("too many values to unpack\nand more")
        return torch.zeros(2)

    assert refusal(causal_lm("llama"), 20, measured) == (
        "llama fails on packed rows (ValueError: too many values to unpack)"
    )


def test_memory_that_runs_out_is_no_refusal() -> None:
    def measured(packed: bool) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        refusal(causal_lm("llama"), 20, measured)


@pytest.mark.parametrize(
    ("window", "longest", "fits"), [(12, 12, True), (12, 13, False), (None, 999, True), (0, 999, True)]
)
def test_a_row_longer_than_the_sliding_window_is_refused(window: int | None, longest: int, fits: bool) -> None:
    model = causal_lm("mistral", sliding_window=window)
    said = refusal(model, longest, lambda packed: torch.zeros(1))
    assert said == (None if fits else "the longest packed row has 13 tokens, and the model looks back 12")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_takes_packed_rows_is_not_refused(kind: str, attention: str) -> None:
    model = causal_lm(kind)
    model.set_attn_implementation(attention)
    additive = attention == "eager"
    assert refusal(model, 20, lambda packed: answer_log_probs(model, PAD, packed, additive)) is None
    model = in_a_row(model)
    assert refusal(model, 20, lambda packed: answer_log_probs(model, PAD, packed, additive)) is not None


def test_the_question_leaves_no_trace_in_model_or_random_state() -> None:
    model = causal_lm("llama").train()
    model.model.layers[0].eval()
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]

    def measured(packed: bool) -> torch.Tensor:
        assert not any(module.training for module in model.modules())
        torch.rand(3)
        return answer_log_probs(model, PAD, packed, False)

    assert refusal(model, 20, measured) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(part.grad is None for part in model.parameters())


@pytest.mark.parametrize("which", ["policy", "reference"])
def test_dpo_goes_on_with_separate_rows(tmp_path: Path, which: str) -> None:
    """Both see the same rows: where one of them refuses, both are given separate ones. The loss is theirs."""
    reference = policy(7)
    tok = AutoTokenizer.from_pretrained(BASE)
    rows, _ = pair_rows(tok, PAIRS, None)
    args = DPOConfig(output_dir=str(tmp_path), max_length=None, beta=0.3, per_device_train_batch_size=2, **ALONE)
    made = Llama3DPOTrainer(
        model=in_a_row(policy()) if which == "policy" else policy(),
        ref_model=in_a_row(reference) if which == "reference" else reference,
        args=args,
        train_dataset=rows,
        processing_class=tok,
        data_collator=PairCollator(0),
        nll_weight=0.2,
        pieces=Pieces(tmp_path / "pieces"),
    )
    assert "gives other values on packed rows" in str(made.fallback)
    (batch,) = list(made.get_train_dataloader())
    assert batch["answers"]["inputs"]["attention_mask"].ndim == 2
    separate = trainer(tmp_path, policy(7), packed=False, nll_weight=0.2)
    assert loss(made) == pytest.approx(loss(separate), abs=1e-5)


@pytest.mark.parametrize("aux", [None, 0.0])
def test_of_experts_rows_are_packed_only_without_the_loss_that_balances_them(tmp_path: Path, aux: float | None) -> None:
    tok = tokenizer()
    rows, _ = pair_rows(tok, PAIRS, None)
    args = DPOConfig(
        output_dir=str(tmp_path), max_length=None, router_aux_loss_coef=aux, precompute_ref_log_probs=True, **ALONE
    )
    made = Llama3DPOTrainer(
        model=causal_lm("mixtral", max_position_embeddings=200),
        ref_model=None,
        args=args,
        train_dataset=rows,
        processing_class=tok,
        data_collator=PairCollator(PAD),
        nll_weight=0.0,
        pieces=Pieces(tmp_path / "pieces"),
    )
    assert (made.fallback is None) == (aux == 0.0)
    (batch,) = list(made.get_train_dataloader())
    assert made.model is not None and math.isfinite(made.compute_loss(made.model, batch).item())


def test_the_reward_model_goes_on_with_separate_rows(tmp_path: Path) -> None:
    """Falcon's classification class takes positions and does not pass them on: its rewards were wrong in silence."""
    tok = tokenizer()
    rows, _ = ranked_rows(tok, RANKED, None)
    args = RewardConfig(output_dir=str(tmp_path), max_length=None, per_device_train_batch_size=3, **ALONE)
    collator = RankingCollator(PAD)
    made = RankingTrainer(
        model=reward_model("falcon"), args=args, train_dataset=rows, processing_class=tok, data_collator=collator
    )
    assert "falcon gives other values on packed rows" in str(made.fallback)
    (batch,) = list(made.get_train_dataloader())
    assert batch["attention_mask"].ndim == 2


@pytest.mark.parametrize(("kind", "fits"), [("llama", True), ("mamba", False), ("bloom", False)])
def test_sft_packs_examples_only_where_they_do_not_see_each_other(tmp_path: Path, kind: str, fits: bool) -> None:
    says = [[{"role": "user", "content": "Why?"}], [{"role": "assistant", "content": "It is so."}]]
    rows, _ = sft_rows(tokenizer(), [{"prompt": says[0], "completion": says[1]}] * 4, 90)
    args = SFTConfig(output_dir=str(tmp_path), packing=True, max_length=90, **ALONE)
    model = causal_lm(kind).save_pretrained(tmp_path / kind)
    args.model_init_kwargs = {"dtype": "float32"}
    made = AnswerSFTTrainer.made(
        model=str(tmp_path / kind), args=args, train_dataset=rows, processing_class=tokenizer()
    )
    assert model is None and (made.fallback is None) == fits
    (batch,) = list(made.get_train_dataloader())
    assert (batch["input_ids"].shape[0] == 1) == fits


def test_a_slower_way_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(str)
    for number in (1, 2):
        terminal.started(number, "reward_model")
        metrics = {
            "pair_accuracy": {"value": 0.5},
            "fallback": ["rows are not packed", "answers are scored one by one"],
        }
        terminal.finished(number, "reward_model", 1.0, metrics)
    out = capsys.readouterr().out
    assert out.count("warning: reward model: rows are not packed\n") == 1
    assert out.count("warning: reward model: answers are scored one by one\n") == 1
