"""DPO on a tiny model: its pairs, trainer and loss."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from trl import DPOConfig

from posttrain.storage.pieces import Pieces
from posttrain.training.rows import pair_rows
from posttrain.training.trainers import Llama3DPOTrainer, PairCollator
from support.tiny_models import causal_lm

BASE = Path(__file__).parents[2] / "data" / "tiny-base"

END = 4  # the token that the tiny base's template writes after an answer; it is all that it writes there


def says(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


PAIRS = [
    {
        "prompt": says(("user", "3 + 4?")),
        "chosen": says(("assistant", "Answer: 7")),
        "rejected": says(("assistant", "I do not know that, sorry.")),
    },
    {
        "prompt": says(("user", "Hello")),
        "chosen": says(("assistant", "Hi!"), ("user", "And 1 + 1?"), ("assistant", "2")),
        "rejected": says(("assistant", "What?"), ("user", "1 + 1?"), ("assistant", "It may be 3 or so")),
    },
]


def trainer(folder: Path, reference: Any = None, **options: Any) -> Llama3DPOTrainer:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows, too_long = pair_rows(tokenizer, PAIRS, None)
    assert too_long == 0
    args = DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        max_length=None,
        report_to="none",
        beta=0.3,
        loss_type=options.pop("loss_type", ["sigmoid"]),
        precompute_ref_log_probs=options.pop("precompute", True),
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
    )
    collator = PairCollator(0, options.get("packed", True), False, options.get("mask_format", True))
    pieces = Pieces(Path(tempfile.mkdtemp(dir=folder)))  # its own: what another reference said is not to be found
    return Llama3DPOTrainer(
        model=policy(),
        ref_model=reference,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=collator,
        nll_weight=options.get("nll_weight", 0.0),
        temperature=options.get("temperature", 1.0),
        pieces=pieces,
        peft_config=options.get("peft_config"),
    )


def policy(seed: int = 0) -> Any:
    model = causal_lm("llama", vocab_size=640)
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn_like(part), alpha=0.02)
    return model


def loss(made: Llama3DPOTrainer) -> float:
    (batch,) = list(made.get_train_dataloader())
    assert made.model is not None
    return made.compute_loss(made.model, batch).item()


def by_hand(model: Any, row: dict[str, Any], side: str, ending: bool, temperature: float = 1.0) -> tuple[float, int]:
    """(log p of what the assistant says in this answer, number of tokens), from the text of the template alone."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        log_p = (model(input_ids=torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    headers = {tokenizer.convert_tokens_to_ids(name) for name in ("<|user|>", "<|assistant|>", "<|system|>")}
    inside, total, count = False, 0.0, 0
    for at, an_id in enumerate(ids):
        if an_id in headers:
            inside = an_id == assistant
        elif inside and (an_id != END or ending):
            total += log_p[at - 1, an_id].item()
            count += 1
    return total, count


def expected(
    reference: Any,
    mask_format: bool,
    nll_weight: float = 0.0,
    normalised: bool = False,
    trained: Any = None,
    temperature: float = 1.0,
) -> float:
    """The loss of `trained`, which is `policy()` where nothing else is said."""
    terms = []
    trained = trained or policy()
    for row in PAIRS:
        ratios = []
        for side in ("chosen", "rejected"):
            ours, count = by_hand(trained, row, side, not mask_format, temperature)
            theirs, _ = by_hand(reference, row, side, not mask_format, temperature)
            ratios.append((ours - theirs) / (count if normalised else 1))
        whole, length = by_hand(trained, row, "chosen", True, temperature)
        preference = -torch.nn.functional.logsigmoid(torch.tensor(0.3 * (ratios[0] - ratios[1]))).item()
        terms.append(preference + nll_weight * -whole / length)
    return sum(terms) / len(terms)
