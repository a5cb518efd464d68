"""DPO's loss against plain torch: what is in it, what is left out, and the reference. Computed apart from the code."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import causal_lm
from transformers import AutoTokenizer
from trl import DPOConfig

from posttrain.config import Dpo
from posttrain.storage.pieces import Pieces
from posttrain.training.rows import pair_rows
from posttrain.training.trainers import Llama3DPOTrainer, PairCollator

BASE = Path(__file__).parent.parent / "data" / "tiny-base"
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


def by_hand(model: Any, row: dict[str, Any], side: str, ending: bool) -> tuple[float, int]:
    """(log p of what the assistant says in this answer, number of tokens), from the text of the template alone."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
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
    reference: Any, mask_format: bool, nll_weight: float = 0.0, normalised: bool = False, trained: Any = None
) -> float:
    """The loss of `trained`, which is `policy()` where nothing else is said."""
    terms = []
    trained = trained or policy()
    for row in PAIRS:
        ratios = []
        for side in ("chosen", "rejected"):
            ours, count = by_hand(trained, row, side, ending=not mask_format)
            theirs, _ = by_hand(reference, row, side, ending=not mask_format)
            ratios.append((ours - theirs) / (count if normalised else 1))
        whole, length = by_hand(trained, row, "chosen", ending=True)
        preference = -torch.nn.functional.logsigmoid(torch.tensor(0.3 * (ratios[0] - ratios[1]))).item()
        terms.append(preference + nll_weight * -whole / length)
    return sum(terms) / len(terms)


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize("mask_format", [True, False])
@pytest.mark.parametrize("nll_weight", [0.0, 0.2])
@pytest.mark.parametrize("packed", [True, False])
def test_the_loss_is_that_of_the_paper(
    tmp_path: Path, mask_format: bool, nll_weight: float, precompute: bool, packed: bool
) -> None:
    settings = {"mask_format": mask_format, "nll_weight": nll_weight, "precompute": precompute, "packed": packed}
    made = trainer(tmp_path, policy(7), **settings)
    assert loss(made) == pytest.approx(expected(policy(7), mask_format, nll_weight), abs=1e-5)


def test_masking_of_formatting_tokens_and_the_nll_term_make_a_difference() -> None:
    """Fails when either is switched off: then the losses above would be one."""
    with_all = expected(policy(7), mask_format=True, nll_weight=0.2)
    assert abs(with_all - expected(policy(7), mask_format=False, nll_weight=0.2)) > 1e-3
    assert abs(with_all - expected(policy(7), mask_format=True)) > 1e-3


def test_the_length_normalised_variant_divides_by_the_tokens_that_are_in_the_loss(tmp_path: Path) -> None:
    made = trainer(tmp_path, policy(7), loss_type=["sigmoid_norm"])
    assert loss(made) == pytest.approx(expected(policy(7), mask_format=True, normalised=True), abs=1e-5)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# As their papers have them: c and r are the log-ratios of chosen and rejected, m and n their tokens, b is beta.
OTHERS: dict[str, Callable[..., float]] = {
    "hinge": lambda c, r, m, n, b: max(0.0, 1 - b * (c - r)),  # SLiC, 2305.10425
    "ipo": lambda c, r, m, n, b: (c / m - r / n - 1 / (2 * b)) ** 2,  # 2310.12036, equation 17, per token
    "apo_zero": lambda c, r, m, n, b: 1 - sigmoid(b * c) + sigmoid(b * r),  # 2408.06266, equation 7
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_other_losses_are_reached_under_their_own_names(tmp_path: Path, name: str) -> None:
    """Each of the masked tokens alone, with the NLL of the chosen beside it."""
    terms = []
    for row in PAIRS:
        sides = []
        for side in ("chosen", "rejected"):
            ours, count = by_hand(policy(), row, side, ending=False)
            sides.append((ours - by_hand(policy(7), row, side, ending=False)[0], count))
        whole, length = by_hand(policy(), row, "chosen", ending=True)
        (chosen, m), (rejected, n) = sides
        terms.append(OTHERS[name](chosen, rejected, m, n, 0.3) + 0.2 * -whole / length)
    made = trainer(tmp_path, policy(7), loss_type=[name], nll_weight=0.2)
    assert loss(made) == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_a_recipe_names_them_as_trl_does() -> None:
    for name in OTHERS:
        assert Dpo.model_validate({"loss_type": name}).trl["loss_type"] == [name]


def test_without_a_reference_it_is_the_policy_as_it_was(tmp_path: Path) -> None:
    assert loss(trainer(tmp_path)) == pytest.approx(0.693147, abs=1e-5)


def test_reference_log_probs_are_not_taken_from_an_earlier_mask(tmp_path: Path) -> None:
    """TRL's cache knows data set and model, not the mask: the same rows and reference, once with and once without."""
    import datasets

    datasets.disable_caching()
    losses = [loss(trainer(tmp_path, policy(7), mask_format=mask)) for mask in (True, False, True)]
    wanted = [expected(policy(7), mask_format=mask) for mask in (True, False, True)]
    assert losses == pytest.approx(wanted, abs=1e-5)
