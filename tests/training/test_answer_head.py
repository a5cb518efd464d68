"""The head computes logits where something is trained on, and nowhere else; the losses stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.dpo import policy, trainer
from support.tiny_models import causal_lm
from transformers import AutoTokenizer
from trl import SFTConfig

from posttrain.errors import StageError
from posttrain.training.rows import sft_rows
from posttrain.training.trainers import AnswerSFTTrainer

BASE = Path(__file__).parents[2] / "data" / "tiny-base"


def says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


ROWS = [
    {"prompt": says("user", "What is 3 + 4, and why?"), "completion": says("assistant", "7")},
    {"prompt": says("user", "Hello"), "completion": says("assistant", "Hi, how are you?")},
]


def sft(folder: Path, temperature: float = 1.0, model: Any = None, **options: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    args = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", max_length=None, **options)
    rows, _ = sft_rows(tokenizer, ROWS, None)
    made = {"model": model or causal_lm("llama", vocab_size=640), "temperature": temperature}
    return AnswerSFTTrainer(**made, args=args, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sft_computes_logits_at_labels_alone_and_its_loss_is_cross_entropy_on_them(
    tmp_path: Path, temperature: float
) -> None:
    made = sft(tmp_path, temperature)
    (batch,) = list(made.get_train_dataloader())
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = made.model(**inputs).logits / temperature
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    by_hand = torch.autograd.grad(wanted, list(made.model.parameters()))
    loss = made.compute_loss(made.model, dict(batch))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, list(made.model.parameters())), by_hand, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    trained = (batch["labels"] != -100).sum().item()
    assert made.model(**batch, fused_lm_head=True).log_probs.shape == (1, trained) != batch["labels"].shape


def test_a_soft_cap_has_no_temperature(tmp_path: Path) -> None:
    capped = causal_lm("gemma2", vocab_size=640, final_logit_softcapping=30.0)
    with pytest.raises(StageError, match=r"a bias or a soft cap.* leave `temperature` of sft and dpo out"):
        sft(tmp_path, 0.7, capped)


def test_a_pairs_answers_in_one_row_have_the_gradients_of_two_rows(tmp_path: Path) -> None:
    found = []
    for packed in (True, False):
        made = trainer(tmp_path, policy(7), packed=packed, nll_weight=0.2)
        (batch,) = list(made.get_train_dataloader())
        assert batch["answers"]["inputs"]["input_ids"].shape[0] == (2 if packed else 4)
        assert made.model is not None
        found.append(torch.autograd.grad(made.compute_loss(made.model, batch), list(made.model.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
