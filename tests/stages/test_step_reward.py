"""Labels of steps by what comes of them, and the step reward model that learns them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.content import REWARD
from support.content import load as content
from support.interrupted import says
from transformers import AutoModelForSequenceClassification

from posttrain import shipped
from posttrain.config import RewardEntry
from posttrain.config.step_reward import StepReward
from posttrain.data.chat_template import render_prompt
from posttrain.data.tables import SCORED_ANSWERS, STEP_LABELS
from posttrain.engines import Request, SamplingParams, completion_seed
from posttrain.errors import EmptyStageError, RecipeError
from posttrain.evaluation.first_errors import found as first_errors
from posttrain.job import Job
from posttrain.loop import play
from posttrain.planning.dry_run import DryRunner
from posttrain.planning.miniature import Size, overrides
from posttrain.recipe.load import load
from posttrain.rollouts import cached_engine, cached_tokenizer
from posttrain.stages import step_labels, step_reward, step_scores
from posttrain.training.steps import StepCollator, step_loss, step_rows

BASE = shipped.locate("data", "step-base")
REWARDS = [{"use": "step-problems.py", "function": "correct", "weight": 1.0, "for": "scores"}]
NAME = RewardEntry.model_validate(REWARDS[0]).name
ENGINE = {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 20000}
PROMPTS, K = 40, 8


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base's answers to problems of three and four steps."""
    lines = shipped.locate("data", "step-problems.train.jsonl").read_text("utf-8").splitlines()
    problems = [row for row in map(json.loads, lines) if len(row["steps"].split()) < 5][:PROMPTS]
    tokenizer: Any = cached_tokenizer(str(BASE))
    prompts = [says("user", row["prompt"]) for row in problems]
    requests = [
        Request(tuple(render_prompt(tokenizer, prompt)), tuple(completion_seed(0, str(at), k) for k in range(K)))
        for at, prompt in enumerate(prompts)
    ]
    made = cached_engine(str(BASE), "shared-prefix", "float32").generate(requests, SamplingParams(1.0, 64))
    correct, rows = content(REWARD / "step-problems.py").correct, []
    for at, (row, some) in enumerate(zip(problems, made, strict=True)):
        for index, one in enumerate(some):
            (value,) = correct([prompts[at]], [says("assistant", one.text)], [row["answer"]])
            answer = {"completion": says("assistant", one.text), "tokens": one.tokens, "finish": one.finish}
            named = {"prompt_id": f"{at:016x}", "sample_index": index, "tag": "", "prompt": prompts[at]}
            scores = {"rewards": json.dumps({NAME: value}), "n_tokens": len(one.tokens)}
            columns = json.dumps({"answer": row["answer"], "steps": row["steps"]})
            rows.append({**named, **answer, **scores, "columns": columns})
    folder = tmp_path_factory.mktemp("samples")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED_ANSWERS), folder / "scored.parquet")
    return folder


def labelled(folder: Path, samples: Path, **more: Any) -> dict[str, Any]:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    config = {"labels": {"max_new_tokens": 64, **more}, "rewards": REWARDS, "step_ends": ["\n"], "engine": ENGINE}
    job = Job(config, {"samples": samples, "policy": BASE}, folder / "out", folder / "scratch", 3)
    return step_labels.run(job)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    labelled(folder, samples, k=8, answers=4, heldout=0.3)
    return folder / "out"


def test_the_first_wrong_step_is_mostly_the_one_that_is_wrong(labels: Path) -> None:
    """Of what is labelled by sampling alone the checker of steps knows the truth."""
    rows = pq.read_table(labels / "step_labels.parquet").to_pylist()
    assert {row["split"] for row in rows} == {"train", "heldout"}
    steps_right = content(REWARD / "step-problems.py").steps_right
    problems = {row["prompt"]: row["steps"] for row in map(json.loads, _lines())}
    same = []
    for row in rows:
        values = problems[row["prompt"][0]["content"]]
        assert sum(row["sizes"]) <= len(row["tokens"]) and len(row["sizes"]) == len(row["labels"])
        if row["right"]:
            assert set(row["labels"]) == {1}
            continue
        wrong = row["labels"].index(0)
        assert row["labels"] == [1] * wrong + [0] + [None] * (len(row["labels"]) - wrong - 1)
        (share,) = steps_right([row["prompt"]], [row["completion"]], [values])
        same.append(wrong == min(round(share * len(values.split())), len(row["sizes"]) - 1))
    assert len(same) > 30 and sum(same) / len(same) > 0.6  # one of four steps, by chance


def _lines() -> list[str]:
    return shipped.locate("data", "step-problems.train.jsonl").read_text("utf-8").splitlines()


def test_without_labels_the_last_round_s_model_stays_and_the_first_round_says_what_to_do(
    tmp_path: Path, samples: Path
) -> None:
    table = pq.read_table(samples / "scored.parquet")
    at = table.schema.get_field_index("rewards")
    right = table.set_column(at, "rewards", pa.array([json.dumps({NAME: 1.0})] * table.num_rows))
    (tmp_path / "samples").mkdir()
    pq.write_table(right, tmp_path / "samples" / "scored.parquet")
    found = labelled(tmp_path / "labels", tmp_path / "samples")
    assert found["answers"] == 0 and "no step is labelled" in found["fallback"][0]
    config = {"step_reward": StepReward().model_dump(mode="json"), "model": {"dtype": "float32", "lora": None}}
    inputs = {"model": BASE, "labels": tmp_path / "labels" / "out"}
    (tmp_path / "out").mkdir()
    with pytest.raises(EmptyStageError, match="prompts that have right samples and wrong ones"):
        step_reward.run(Job(config, inputs, tmp_path / "out", tmp_path / "scratch", 0))
    job = Job(config, {**inputs, "previous": BASE}, tmp_path / "out", tmp_path / "scratch", 0)
    assert "the last round's model stays" in step_reward.run(job)["fallback"][0]
    assert (tmp_path / "out" / "config.json").read_bytes() == (BASE / "config.json").read_bytes()


def test_the_loss_is_that_of_the_labelled_steps_ends() -> None:
    answers = [
        {"prompt_ids": [5, 6], "tokens": [7, 8, 9, 10], "sizes": [2, 1, 1], "labels": [1, 0, None]},
        {"prompt_ids": [5], "tokens": [7, 8], "sizes": [2], "labels": [1]},
        {"prompt_ids": [5] * 20, "tokens": [7, 8], "sizes": [2], "labels": [1]},
        {"prompt_ids": [5], "tokens": [7, 8], "sizes": [0, 2], "labels": [1, 0]},  # within another one's token
        {"prompt_ids": [5], "tokens": [7, 8], "sizes": [2, 0], "labels": [1, 0]},  # and nothing shows what is wrong
    ]
    rows, too_long = step_rows(answers, 10)
    assert too_long == 1 and rows["completion_ids"] == [[7, 8, 9], [7, 8], [7, 8]]
    assert rows["ends"] == [[2, 3], [2], [2]] and rows["right"] == [[1.0, 0.0], [1.0], [0.0]]
    given: Any = list(rows)
    batch = StepCollator(0)(given)
    assert batch["last"].tolist() == [[3, 4], [7, -1], [12, -1]]  # rows are five tokens wide
    logits = torch.tensor([[0.5, -1.0], [2.0, 9.0], [0.0, 9.0]], requires_grad=True)
    loss = step_loss(logits, batch["right"], batch["last"] >= 0)

    def cost(logit: float, right: float) -> float:
        p = 1 / (1 + torch.tensor(-logit).exp())
        return -float(torch.log(p if right else 1 - p))

    wanted = ((cost(0.5, 1) + cost(-1.0, 0)) / 2 + cost(2.0, 1) + cost(0.0, 0)) / 3
    assert loss.item() == pytest.approx(wanted, abs=1e-6)
    loss.backward()
    sigmoid = torch.sigmoid(torch.tensor([0.5, -1.0, 2.0, 0.0])).tolist()
    assert logits.grad is not None
    found = logits.grad.tolist()
    assert found[0] == pytest.approx([(sigmoid[0] - 1) / 6, sigmoid[1] / 6])
    assert found[1] == pytest.approx([(sigmoid[2] - 1) / 3, 0.0])
    assert found[2] == pytest.approx([sigmoid[3] / 3, 0.0])


def test_the_model_learns_which_steps_are_wrong(tmp_path: Path) -> None:
    """On labels that the checker gave, since few sampled ones are quick: slips in sums of two numbers."""
    tokenizer: Any = cached_tokenizer(str(BASE))
    rows = []
    for at in range(240):
        left, right = 10 + at % 12, 2 + at // 12 % 7
        wrong = at % 3 == 0
        text = f"{left} + {right} = {left + right + 10 * wrong}\nAnswer: {left + right + 10 * wrong}"
        tokens = tokenizer.encode(text, add_special_tokens=False)
        first = tokens.index(tokenizer.encode("\n", add_special_tokens=False)[0]) + 1
        prompt = says("user", f"Tom has {left} caps. Tom finds {right} more caps. How many caps does Tom have now?")
        answer = {"prompt_id": f"{at:016x}", "sample_index": 0, "prompt": prompt, "completion": says("assistant", text)}
        steps = {"tokens": tokens, "sizes": [first, len(tokens) - first], "labels": [0, None] if wrong else [1, 1]}
        rows.append({**answer, **steps, "right": not wrong, "split": "heldout" if at % 5 == 0 else "train"})
    (tmp_path / "labels").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=STEP_LABELS), tmp_path / "labels" / "step_labels.parquet")
    fields = {"learning_rate": 1e-3, "num_train_epochs": 6, "per_device_train_batch_size": 16}
    config = {"step_reward": StepReward.model_validate(fields).model_dump(mode="json")}
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    inputs = {"model": BASE, "labels": tmp_path / "labels"}
    job = Job(
        {**config, "model": {"dtype": "float32", "lora": None}}, inputs, tmp_path / "out", tmp_path / "scratch", 0
    )
    found = step_reward.run(job)
    assert found["answers"] == 192 and found["last"]["accuracy"] > 0.9
    assert found["step_accuracy"]["value"] > 0.85 and found["f1"] > 0.8
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["architectures"] == [
        "LlamaForSequenceClassification"
    ]


def test_steps_are_scored_by_the_logit_at_their_end(tmp_path: Path, samples: Path) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)
    model.save_pretrained(tmp_path / "model")
    tokenizer: Any = cached_tokenizer(str(BASE))
    tokenizer.save_pretrained(tmp_path / "model")
    table = pq.read_table(samples / "scored.parquet").slice(0, 3 * K)
    (tmp_path / "answers").mkdir()
    pq.write_table(table.drop_columns("rewards"), tmp_path / "answers" / "answers.parquet")
    inputs = {"answers": tmp_path / "answers", "step_reward": tmp_path / "model"}
    config = {"step_ends": ["\n"], "engine": {**ENGINE, "shard_tokens": 500}}
    step_scores.run(Job(config, inputs, tmp_path, tmp_path / "scratch", 0))
    scored = pq.read_table(tmp_path / "step_scores.parquet")["step_scores"].to_pylist()
    end = tokenizer.encode("\n", add_special_tokens=False)[0]
    for row, scores in zip(table.to_pylist(), scored, strict=True):
        prompt, tokens = render_prompt(tokenizer, row["prompt"]), row["tokens"]
        if scores is None:
            continue
        with torch.inference_mode():
            hidden = model.model(torch.tensor([[*prompt, *tokens]])).last_hidden_state[0]
            logits = model.score(hidden)[len(prompt) :, 0].tolist()
        ends = [at for at, one in enumerate(tokens) if one == end and at + 1 < len(tokens)]
        assert scores == pytest.approx([logits[at] for at in [*ends, len(tokens) - 1]], abs=1e-4)


def test_f1_is_that_of_processbench() -> None:
    found = first_errors([0, 1, 2, None, None, 3], [0, 2, 2, 1, None, None])
    assert found["error"]["value"] == 0.5 and found["right"]["value"] == 0.5 and found["f1"] == 0.5
    found = first_errors([0, 1, None], [0, 1, None])
    assert found["f1"] == 1.0
    found = first_errors([1], [0])
    assert found["error"]["value"] == 0.0 and found["right"] is None and found["f1"] is None


def test_it_is_trained_on_the_round_s_samples_and_scores_steps_from_then_on() -> None:
    changes = ["step_reward={start: previous}", "step_scores={by: step_reward}", "search={}", "filters=[{use: steps}]"]
    runner = DryRunner()
    play(load("quickstart", changes), runner, 2)
    by_name = {(one.number, one.role or one.stage): one for one in runner.stages}
    assert by_name[1, "step_labels"].inputs["samples"] == "1/scores"
    assert by_name[1, "step_reward"].inputs["labels"] == "1/step_labels"
    assert by_name[2, "step_reward"].inputs["model"] == by_name[2, "step_reward"].inputs["previous"] == "1/step_reward"
    assert (1, "step_scores") not in by_name
    assert by_name[2, "step_scores"].inputs["step_reward"] == "1/step_reward"
    assert by_name[1, "search"].inputs["step_reward"] == "1/step_reward"
    assert by_name[2, "search"].inputs["step_reward"] == "2/step_reward"


def test_a_probe_neither_searches_nor_labels() -> None:
    changes = ["step_reward={}", "search={}", "correction={}", "dpo.pairs_from=[search, pairs]"]
    small = load("quickstart", [*changes, *overrides(load("quickstart", changes), Size(64))])
    assert small.step_reward is small.search is small.correction is None
    assert small.dpo and small.dpo.pairs_from == ["pairs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["step_scores={by: step_reward}"], "there is no step reward model"),
        (["step_reward={variants: [{seed: 1}]}"], "variants are compared as policies are"),
        (["step_reward={center_rewards_coefficient: 0.1}"], "whose middle is 0"),
        (["step_reward={}", "reward=[{use: reward-model}, {use: readers.py, for: preferences}]"], "does not say which"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load("quickstart", changes)
