"""The reward model's rows, scores and loss, against numbers computed apart from the code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.ranking import PAIRS, alone, pair
from support.tiny_models import EOS, PAD, reward_model, tokenizer
from transformers import AutoTokenizer
from trl import RewardConfig

from posttrain.config import RewardModel
from posttrain.data.tables import PAIRS as SCHEMA
from posttrain.job import Job
from posttrain.rewards.scoring import model_rewards
from posttrain.stages import run_stage
from posttrain.training.ranking import (
    LLAMA2_MARGINS,
    RankingCollator,
    RankingTrainer,
    ending_rewards,
    ranked_rows,
    ranking_loss,
)

BASE = Path(__file__).parents[2] / "data" / "tiny-base"


def prepared(tok: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return ranked_rows(tok, rows, None)[0].to_list()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gpt2"])
@pytest.mark.parametrize(("packed", "attention"), [(True, "sdpa"), (True, "eager"), (False, "sdpa")])
def test_responses_in_one_row_score_as_rows_of_their_own(kind: str, packed: bool, attention: str) -> None:
    model, tok = reward_model(kind), tokenizer()
    batch = RankingCollator(PAD, packed, attention == "eager")(prepared(tok, PAIRS))
    assert len(batch["input_ids"]) == (3 if packed else 7)
    wanted = [alone(model, tok, row) for row in PAIRS]
    model.set_attn_implementation(attention)
    with torch.no_grad():
        found = ending_rewards(model, batch)
    for number, scores in enumerate(wanted):
        assert found[number, : len(scores)].tolist() == pytest.approx(scores, abs=1e-5)
        assert not found[number, len(scores) :].any()


def test_the_loss_is_of_all_ordered_pairs_with_the_margin_between_chosen_and_rejected() -> None:
    rewards = torch.tensor([[2.0, 0.5, 0.0], [1.0, 3.0, -0.5]])
    there = torch.tensor([[True, True, False], [True, True, True]])

    def minus_log_sigmoid(x: float) -> float:
        return math.log(1 + math.exp(-x))

    first = minus_log_sigmoid(1.5)
    second = (minus_log_sigmoid(-2.0) + minus_log_sigmoid(1.5) + minus_log_sigmoid(3.5)) / 3
    none = torch.zeros(2)
    assert ranking_loss(rewards, there, none).item() == pytest.approx((first + second) / 2, abs=1e-6)
    first = minus_log_sigmoid(1.5 - 2 / 3)
    second = (minus_log_sigmoid(-2.0) + minus_log_sigmoid(1.5) + minus_log_sigmoid(3.5 - 1)) / 3
    margins = torch.tensor([2 / 3, 1.0])
    assert ranking_loss(rewards, there, margins).item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_margins_come_from_the_level_and_only_where_they_are_asked_for() -> None:
    tok = tokenizer()
    assert list(ranked_rows(tok, PAIRS, None)[0]["margin"]) == [0.0, 0.0, 0.0]
    assert list(ranked_rows(tok, PAIRS, None, LLAMA2_MARGINS)[0]["margin"]) == pytest.approx([2 / 3, 1.0, 0.0])


@pytest.mark.parametrize("packed", [True, False])
def test_the_trainers_loss_is_that_of_separate_rows(tmp_path: Path, packed: bool) -> None:
    tok = AutoTokenizer.from_pretrained(BASE)
    model = reward_model("llama", vocab_size=640)
    rows, _ = ranked_rows(tok, PAIRS, None)
    args = RewardConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        max_length=None,
        report_to="none",
        per_device_train_batch_size=3,
    )
    made = RankingTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=tok,
        data_collator=RankingCollator(0, packed),
    )
    (batch,) = list(made.get_train_dataloader())
    scores = [alone(model, tok, row) for row in PAIRS]
    losses = []
    for row in scores:
        gaps = [row[i] - row[j] for i in range(len(row)) for j in range(i + 1, len(row))]
        losses.append(sum(math.log(1 + math.exp(-gap)) for gap in gaps) / len(gaps))
    assert made.compute_loss(model.eval(), batch).item() == pytest.approx(sum(losses) / 3, abs=1e-5)


def test_near_identical_and_too_long_pairs_are_dropped_and_counted() -> None:
    tok = tokenizer()
    same = pair("What is the capital of the country?", "It is the city of Rome.", "It is the city of Rome!")
    rows, dropped = ranked_rows(tok, [*PAIRS, same], None, max_similarity=0.9)
    assert (len(rows), dropped) == (3, {"too_long": 0, "near_identical": 1})
    rows, dropped = ranked_rows(tok, [*PAIRS, same], None)
    assert (len(rows), dropped) == (4, {"too_long": 0, "near_identical": 0})
    longest = max(len(row["prompt_ids"]) + max(map(len, row["responses"])) for row in prepared(tok, PAIRS))
    assert ranked_rows(tok, [*PAIRS, same], longest - 1)[1]["too_long"] >= 1


def test_with_the_end_token_as_padding_training_reads_what_scoring_reads() -> None:
    """Peers train on the score at the end token and then read it one token earlier, or the other way round."""
    from posttrain.engines.reward_scorer import Scorer

    tok = tokenizer()
    tok.pad_token = tok.eos_token
    model = reward_model("llama", pad_token_id=tok.eos_token_id)
    batch = RankingCollator(EOS)(prepared(tok, PAIRS))
    with torch.no_grad():
        trained_on = ending_rewards(model, batch)
    full = prepared(tokenizer(), PAIRS)  # with the end token, as texts are when they are scored
    read = Scorer(model).score([row["prompt_ids"] for row in full], [row["responses"] for row in full])
    for number, scores in enumerate(read):
        assert trained_on[number, : len(scores)].tolist() == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_an_empty_answer_is_read_where_the_prompt_ends(packed: bool) -> None:
    """Where the end token is padding too, nothing is left of it: packed, the response before it must not be read."""
    from posttrain.engines.reward_scorer import Scorer

    tok = tokenizer()
    tok.pad_token = tok.eos_token
    model = reward_model("llama", pad_token_id=tok.eos_token_id)
    rows = prepared(tok, [pair("Mia has 7", "12", ""), pair("Mia has 7", "", "12")])
    assert [list(map(len, row["responses"])) for row in rows] == [[1, 0], [0, 1]]
    with torch.no_grad():
        trained_on = ending_rewards(model, RankingCollator(EOS, packed)(rows))
    read = Scorer(model).score([row["prompt_ids"] for row in rows], [row["responses"] for row in rows])
    assert trained_on.flatten().tolist() == pytest.approx([one for row in read for one in row], abs=1e-5)
    assert read[0][0] != pytest.approx(read[0][1], abs=1e-3)


def test_a_model_without_a_padding_token_is_trained_on_what_scoring_reads(tmp_path: Path) -> None:
    """As Llama 3's own: TRL makes the end token its padding, and scores are then read before the end token."""
    tok = tokenizer()
    tok.pad_token = None
    model = tmp_path / "model"
    tok.save_pretrained(model)
    reward_model("llama", pad_token_id=None).save_pretrained(model)
    row = {**PAIRS[0], "split": "train", "prompt_id": "a", "margin": 1.0, "source": "", "columns": "{}"}
    rows = [{**row, "edited": None, "level": "better"}]
    preferences, out, scratch = tmp_path / "preferences", tmp_path / "out", tmp_path / "scratch"
    for folder in (preferences, out, scratch):
        folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), preferences / "pairs.parquet")
    section = RewardModel.model_validate({"learning_rate": 1e-12, "max_steps": 1, "bf16": False})
    config = {"reward_model": section.model_dump(), "model": {"dtype": "float32", "lora": None}}
    inputs = {"model": model, "preferences_1": preferences}
    loss = run_stage("reward_model", Job(config, inputs, out, scratch, 0))["loss"]
    answers = [{"prompt_id": "a", "prompt": row["prompt"], "completion": row[side]} for side in ("chosen", "rejected")]
    chosen, rejected = model_rewards(answers, str(out))
    assert loss == pytest.approx(math.log(1 + math.exp(rejected - chosen)), abs=1e-4)
