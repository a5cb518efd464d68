"""What the trained stages share: rows as token ids, the term that Llama 3 adds to DPO, checkpoints that are whole."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from posttrain.storage.checkpoint_seals import NEEDED, latest_whole, seal
from posttrain.training.checkpoints import mean_loss
from posttrain.training.rows import IGNORED, pair_rows, sft_rows
from posttrain.training.trainers import chosen_nll

BASE = Path(__file__).parents[2] / "data" / "tiny-base"


def says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


ROW = {
    "prompt": says("user", "3 + 4?"),
    "completion": says("assistant", "Answer: 7"),
    "chosen": says("assistant", "Answer: 7"),
    "rejected": says("assistant", "I do not know."),
}


def test_the_prompt_is_masked_and_the_end_token_is_not() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows, too_long = sft_rows(tokenizer, [ROW], None)
    ids, labels = rows[0]["input_ids"], rows[0]["labels"]
    assert tokenizer.decode(ids) == "<|user|>3 + 4?<|end|><|assistant|>Answer: 7<|end|>"
    trained = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(trained) == "Answer: 7<|end|>"
    assert labels[-len(trained) :] == trained
    assert too_long == 0


def test_rows_that_do_not_fit_are_left_out_and_counted() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows, too_long = sft_rows(tokenizer, [ROW, {**ROW, "completion": says("assistant", "7" * 50)}], 30)
    assert (len(rows), too_long) == (1, 1)
    rows, too_long = pair_rows(tokenizer, [ROW, {**ROW, "rejected": says("assistant", "7" * 50)}], 30)
    assert (len(rows), too_long) == (1, 1)


def test_the_nll_of_the_chosen_is_per_token_and_averaged_over_sequences_not_tokens() -> None:
    # Two pairs; the chosen answers have 1 and 3 tokens with log-probabilities -1 and -2.
    mask = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]).bool()
    log_probs = torch.tensor([[-1.0, 0, 0], [-2.0, -2.0, -2.0], [-9.0, -9.0, 0], [-9.0, 0, 0]])
    assert chosen_nll(log_probs, mask).item() == pytest.approx((1 + 2) / 2)
    by_tokens = (1 + 2 + 2 + 2) / 4
    assert not math.isclose(by_tokens, 1.5)  # what TRL's own `sft` term would give


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in (*map(min, NEEDED), "model.safetensors"):
        (path / name).write_text(f"{name} at {step}")
    seal(path)
    return path


def test_the_newest_whole_checkpoint_is_taken_by_number_not_by_name(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    assert latest_whole(tmp_path) == newest
    assert latest_whole(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["optimizer gone", "cut", "no seal", "changed"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path: Path, damage: str) -> None:
    before, newest = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    if damage == "optimizer gone":  # transformers would go on with a fresh optimizer, without a word
        (newest / "optimizer.pt").unlink()
    elif damage == "cut":
        (newest / "model.safetensors").write_text("mod")
    elif damage == "no seal":
        (newest / "posttrain.json").unlink()
    else:
        (newest / "trainer_state.json").write_text("trainer_state.json at 11")
    assert latest_whole(tmp_path) == before
    assert not newest.exists()


def test_the_mean_loss_weighs_what_was_logged_by_steps() -> None:
    """Two steps of 3 and 1, logged as their mean; then one of 5, and what the trainer says when it ends."""
    history = [{"step": 2, "loss": 2.0}, {"step": 3, "loss": 5.0}, {"step": 3, "train_loss": 5.0}]
    assert mean_loss(history) == pytest.approx((3 + 1 + 5) / 3)
    assert mean_loss([]) is None
