"""DPO's loss against plain torch: what is in it, what is left out, and the reference. Computed apart from the code."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from support.dpo import PAIRS, by_hand, expected, loss, policy, trainer

from posttrain.config import Dpo


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


@pytest.mark.parametrize("precompute", [True, False])
def test_all_its_log_probs_are_at_the_temperature(tmp_path: Path, precompute: bool) -> None:
    made = trainer(tmp_path, policy(7), nll_weight=0.2, temperature=0.7, precompute=precompute)
    wanted = expected(policy(7), mask_format=True, nll_weight=0.2, temperature=0.7)
    assert loss(made) == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted - expected(policy(7), mask_format=True, nll_weight=0.2)) > 1e-2


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
