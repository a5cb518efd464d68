"""On-policy training on the tiny base: what is sampled, the losses of the papers, kills, and rounds without prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.interrupted import BASE, Killed, says
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.config.online import Online
from posttrain.data.chat_template import render_prompt
from posttrain.data.tables import SCORED_ANSWERS
from posttrain.engines import Request, SamplingParams, completion_seed, load_engine
from posttrain.errors import EmptyStageError
from posttrain.job import Job
from posttrain.seeds import derive_seed
from posttrain.stages import run_stage
from posttrain.storage.files import file_hash
from posttrain.storage.store import MANIFEST

PROMPTS, GROUP, LONGEST = 6, 4, 6
REWARD = """
def digits(prompts, completions, **columns):
    return [sum(c.isdigit() for c in one[-1]["content"]) / max(1, len(one[-1]["content"])) for one in completions]
"""
LOGITS = {"mean": 0.5, "deviation": 2.0}


def samples(folder: Path, right: list[list[float]]) -> Path:
    """Scored samples: of each prompt these scores."""
    rows = [
        {
            "prompt_id": str(number),
            "sample_index": at,
            "tag": "",
            "prompt": says("user", f"{number} + {number}?"),
            "completion": says("assistant", "?"),
            "tokens": [5],
            "n_tokens": 1,
            "finish": "stop",
            "logprob": -1.0,
            "columns": json.dumps({"number": number}),
            "rewards": json.dumps({"digits": score}),
            "score": score,
        }
        for number, scores in enumerate(right)
        for at, score in enumerate(scores)
    ]
    folder.mkdir(parents=True)
    schema = SCORED_ANSWERS.append(pa.field("score", pa.float64()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "scored.parquet")
    (folder / MANIFEST).write_text(json.dumps({"metrics": {"logits": LOGITS}}))
    return folder


class Training:
    """The stage in its folders."""

    def __init__(self, folder: Path, right: list[list[float]] | None = None, lora: Any = None, **fields: Any) -> None:
        self.folder = folder
        self.samples = samples(folder / "in", right or [[0.0, 1.0]] * PROMPTS)
        (folder / "digits.py").write_text(REWARD)
        given = {"group": GROUP, "max_new_tokens": LONGEST, "per_device_train_batch_size": 2 * GROUP}
        given |= {"num_train_epochs": 2, "learning_rate": 1e-3, "save_steps": 2, "logging_steps": 1}
        self.section = Online(**{**given, **fields})
        self.config = {
            "online": self.section.model_dump(mode="json"),
            "model": {"dtype": "float32", "lora": lora},
            "rewards": [{"use": str(folder / "digits.py"), "weight": 1.0}],
            "engine": {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 4096},
        }
        self.steps: list[int] = []

    def job(self, dies_after: int | None = None) -> Job:
        for name in ("out", "scratch"):
            (self.folder / name).mkdir(exist_ok=True)
        for path in (self.folder / "out").iterdir():
            path.unlink()
        begun = False

        def progress(done: int, total: int, unit: str) -> None:
            nonlocal begun
            if unit == "steps" and begun:
                self.steps.append(done)
                if done == dies_after:
                    raise Killed
            begun = begun or unit == "steps"

        inputs = {"model": BASE, "samples": self.samples}
        return Job(self.config, inputs, self.folder / "out", self.folder / "scratch", 0, {}, progress=progress)

    def go(self, dies_after: int | None = None) -> dict[str, Any]:
        return run_stage("online", self.job(dies_after))

    def rollouts(self) -> list[dict[str, Any]]:
        return pq.read_table(self.folder / "out" / "rollouts.parquet").to_pylist()

    def bits(self) -> tuple[str, str]:
        return tuple(file_hash(self.folder / "out" / name) for name in ("model.safetensors", "rollouts.parquet"))  # type: ignore[return-value]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_policy_learns_what_the_reward_asks_for(tmp_path: Path, algorithm: str) -> None:
    training = Training(tmp_path, algorithm=algorithm, num_train_epochs=8)
    found = training.go()
    assert found["steps"] == 8 * PROMPTS // 2 == len(training.steps)
    assert found["completions"] == found["steps"] * 2 * GROUP == len(training.rollouts())
    curve = found["curve"]["score"]
    assert len(curve) == found["steps"] and sum(curve[-6:]) / 6 > sum(curve[:6]) / 6 + 0.1
    assert found["kl"] > 0.01 and found["prompts"]["used"] == PROMPTS
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_completions_are_those_of_the_engine_with_seeds_of_the_step_and_scored_as_samples_are(tmp_path: Path) -> None:
    training = Training(tmp_path, max_steps=1)
    assert training.go()["kl"] == pytest.approx(0, abs=1e-4)  # sampled before the first update
    rows = training.rollouts()
    assert len({row["prompt_id"] for row in rows}) == 2 and {row["step"] for row in rows} == {0}
    tokenizer, engine = AutoTokenizer.from_pretrained(BASE), load_engine(BASE, dtype="float32")
    seed = derive_seed(0, "rollouts", 0)
    for start in (0, GROUP):
        group = rows[start : start + GROUP]
        seeds = tuple(completion_seed(seed, group[0]["prompt_id"], at) for at in range(GROUP))
        request = Request(tuple(render_prompt(tokenizer, group[0]["prompt"])), seeds)
        (wanted,) = engine.generate([request], SamplingParams(1.0, LONGEST))
        assert [tuple(row["tokens"]) for row in group] == [one.tokens for one in wanted]
        for row, one in zip(group, wanted, strict=True):
            share = sum(c.isdigit() for c in one.text) / max(1, len(one.text))
            assert row["score"] == pytest.approx(share) and json.loads(row["rewards"]) == {"digits": row["score"]}
            assert row["completion"] == says("assistant", one.text)


def advantages(algorithm: str, scores: list[float]) -> torch.Tensor:
    """Of one group, by the papers: equation 3 of GRPO's (the deviation is TRL's, of a sample), 9 of RLOO's."""
    found, count = torch.tensor(scores), len(scores)
    if algorithm == "grpo":
        return (found - found.mean()) / (found.std() + 1e-4)
    return torch.stack([one - (found.sum() - one) / (count - 1) for one in found])


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_step_follows_the_gradient_of_the_papers(tmp_path: Path, algorithm: str) -> None:
    plain = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 1e9, "lr_scheduler_type": "constant"}
    training = Training(tmp_path, algorithm=algorithm, max_steps=1, gradient_accumulation_steps=1, **plain)
    training.go()
    rows, tokenizer = training.rollouts(), AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    loss, tokens = torch.zeros(()), 0
    for start in (0, GROUP):
        group = rows[start : start + GROUP]
        for row, advantage in zip(group, advantages(algorithm, [row["score"] for row in group]), strict=True):
            prompt = render_prompt(tokenizer, row["prompt"])
            answer = [*row["tokens"], *[tokenizer.eos_token_id] * (row["finish"] == "stop")]
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            loss = loss - advantage * logits.log_softmax(-1)[range(len(answer)), answer].sum()
            tokens += len(answer)
    # TRL's GRPO takes the mean over all tokens of the step (loss_type: dapo), its RLOO that over completions.
    (loss / (tokens if algorithm == "grpo" else len(rows))).backward()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    trained = dict(after.named_parameters())
    moved = 0.0
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(trained[name], weight - 0.5 * weight.grad, rtol=0, atol=2e-6)
        moved = max(moved, float((0.5 * weight.grad).abs().max()))
    assert moved > 1e-3  # so that the comparison says something


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_killed_it_ends_with_the_same_bits_and_completions(tmp_path: Path, algorithm: str) -> None:
    whole, killed = (Training(tmp_path / name, algorithm=algorithm, beta=0.04) for name in ("whole", "killed"))
    figures = whole.go()
    for step in (1, 3, 5):  # before any checkpoint, in the first epoch, in the second
        with pytest.raises(Killed):
            killed.go(dies_after=step)
    found = killed.go()
    assert found["resumed_at"] == 4 and killed.bits() == whole.bits()
    assert found["curve"] == figures["curve"] and found["kl"] == pytest.approx(figures["kl"])


def test_a_step_that_does_not_fit_into_memory_learns_from_the_same_completions(tmp_path: Path) -> None:
    whole, parts = Training(tmp_path / "whole", max_steps=2), Training(tmp_path / "parts", max_steps=2)
    whole.go()
    (tmp_path / "parts" / "scratch").mkdir()
    (tmp_path / "parts" / "scratch" / "micro_batch.json").write_text("2")  # what fitted before a kill
    assert parts.go()["micro_batch"] == 2
    first = [[row for row in one.rollouts() if row["step"] == 0] for one in (whole, parts)]
    assert first[0] == first[1]
    weights = [AutoModelForCausalLM.from_pretrained(one.folder / "out").state_dict() for one in (whole, parts)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=0, atol=1e-4)


def test_with_lora_the_engine_samples_from_base_and_adapter(tmp_path: Path) -> None:
    lora = {"r": 4, "lora_alpha": 8}
    training = Training(tmp_path, lora=lora, learning_rate=0.02, num_train_epochs=8)
    found = training.go()
    curve = found["curve"]["score"]
    assert sum(curve[-4:]) > sum(curve[:4]) + 0.4  # completions follow what the adapter learned
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()  # merged


def test_prompts_of_which_all_are_right_or_none_are_not_asked(tmp_path: Path) -> None:
    right = [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.9, 0.2], [1.0, 0.0]]
    training = Training(tmp_path, right, num_train_epochs=1, prompts=2)
    found = training.go()
    assert found["prompts"] == {"used": 2, "below": 1, "above": 1, "too_long": 0, "left_out": 1}
    assert {row["prompt_id"] for row in training.rollouts()} <= {"2", "3", "4"}


def test_a_round_without_such_prompts_stops_or_leaves_the_policy_as_it_is(tmp_path: Path) -> None:
    right = [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
    with pytest.raises(EmptyStageError, match=r"1 prompts are left, and a step has 2.*\[training-no-prompts\]"):
        Training(tmp_path / "stop", right).go()
    found = Training(tmp_path / "skip", right, without_prompts="skip").go()
    assert found["steps"] == 0 and "1 prompts are left" in found["skipped"]
    assert pq.read_table(tmp_path / "skip" / "out" / "rollouts.parquet").num_rows == 0
    before, after = (
        AutoModelForCausalLM.from_pretrained(one).state_dict() for one in (BASE, tmp_path / "skip" / "out")
    )
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_completions_without_a_score_move_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path, max_steps=2)
    (tmp_path / "digits.py").write_text("def digits(prompts, completions, **columns): return [None] * len(prompts)\n")
    found = training.go()
    assert found["unscored"] == found["completions"] and found["curve"]["score"] == [None, None]
    before, after = (AutoModelForCausalLM.from_pretrained(one).state_dict() for one in (BASE, tmp_path / "out"))
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
