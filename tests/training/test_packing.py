"""SFT with examples packed into rows: the loss of each as if it stood alone. Computed apart from the code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_models import causal_lm
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from posttrain.config import Sft
from posttrain.job import Job
from posttrain.training.rows import IGNORED, sft_rows
from posttrain.training.run import arguments

BASE = Path(__file__).parents[2] / "data" / "tiny-base"
TEXTS = [("3 + 4?", "Answer: 7"), ("Hello", "Hi! How are you today?"), ("1 + 1?", "2"), ("Why?", "I do not know that.")]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_examples_do_not_see_each_other(attention: str, tmp_path: Path) -> None:
    """Fails where packed rows leak: the loss would then be that of answers which saw the examples before."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows = [
        {"prompt": [{"role": "user", "content": ask}], "completion": [{"role": "assistant", "content": answer}]}
        for ask, answer in TEXTS
    ]
    prepared, _ = sft_rows(tokenizer, rows, 96)
    section = Sft.model_validate(
        {"learning_rate": 1e-6, "packing": True, "max_length": 96, "bf16": False, "per_device_train_batch_size": 4}
    )
    model = causal_lm("llama", vocab_size=len(tokenizer), attn_implementation=attention)
    args = arguments(SFTConfig, section, Job({}, {}, tmp_path, tmp_path, seed=0))
    args.model_init_kwargs = None  # the model is made here
    trainer = SFTTrainer(model=model, args=args, train_dataset=prepared, processing_class=tokenizer)
    (batch,) = list(trainer.get_train_dataloader())
    assert batch["input_ids"].numel() == sum(prepared["length"])  # all in one row, nothing padded
    with torch.no_grad():
        loss = trainer.compute_loss(model.eval(), dict(batch)).item()

        total, count = 0.0, 0
        for row in prepared.to_list():
            log_probs = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for at, label in enumerate(row["labels"][1:]):
                if label != IGNORED:
                    total, count = total - log_probs[at, label].item(), count + 1
    assert loss == pytest.approx(total / count, abs=1e-5)
