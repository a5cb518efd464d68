"""Scores of steps: those of an independent computation, as a column of the samples, and in the loop from round 2 on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.interrupted import BASE, says
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain import filters
from posttrain.data.chat_template import render_prompt
from posttrain.data.tables import ANSWERS
from posttrain.errors import DataError, EmptyStageError, RecipeError
from posttrain.filters import FilterContext
from posttrain.job import Job
from posttrain.loop import play
from posttrain.planning.dry_run import DryRunner, dry_run
from posttrain.recipe.load import load
from posttrain.stages import scores, step_scores

BETA, TEMPERATURE = 0.3, 0.7
TEXTS = ["2 + 3 = 5\nAnswer: 5", "4 apples\n\n6 in all\nAnswer: 6", "\n", "Answer: 12"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped base as the reference, and as the policy the same with other weights."""
    policy, model = tmp_path_factory.mktemp("policy"), AutoModelForCausalLM.from_pretrained(BASE)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(policy)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(policy)
    return {"policy": policy, "reference": BASE}


def answers(folder: Path, texts: list[str] = TEXTS) -> Path:
    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    rows = []
    for at, text in enumerate(texts):
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        asked = says("user", f"What is {at // 2} + 3?")
        made = {"prompt": asked, "completion": says("assistant", text), "tokens": ids, "n_tokens": len(ids)}
        rows.append({"prompt_id": str(at // 2), "sample_index": at % 2, "tag": "", "finish": "stop", **made})
    folder.mkdir(parents=True, exist_ok=True)
    made = [{**row, "logprob": None, "columns": '{"answer": "5"}'} for row in rows]
    pq.write_table(pa.Table.from_pylist(made, schema=ANSWERS), folder / "answers.parquet")
    return folder


def scored(folder: Path, models: dict[str, Path], table: Path) -> dict[str, Any]:
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    engine = {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 50}
    config = {"step_ends": ["\n"], "beta": BETA, "temperature": TEMPERATURE, "engine": engine}
    return step_scores.run(Job(config, {"answers": table, **models}, out, folder / "scratch", 0))


def log_probabilities(folder: Path, prompt: Any, text: str) -> list[list[float]]:
    """Of each step's tokens, by transformers alone. The shipped tokenizer has a token for each line's end."""
    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found, before = [], list(render_prompt(tokenizer, prompt))
    for step in re.findall(r"[^\n]+\n*", text):
        ids = tokenizer.encode(step, add_special_tokens=False)
        with torch.inference_mode():
            logits = model(torch.tensor([[*before, *ids]])).logits[0].div(TEMPERATURE).log_softmax(-1)
        found.append([float(logits[len(before) + at - 1, one]) for at, one in enumerate(ids)])
        before += ids
    return found


def test_a_step_s_score_is_that_of_its_tokens(tmp_path: Path, models: dict[str, Path]) -> None:
    table = answers(tmp_path / "answers")
    found = scored(tmp_path, models, table)
    rows = pq.read_table(tmp_path / "out" / "step_scores.parquet")["step_scores"].to_pylist()
    for row, text, score in zip(pq.read_table(table / "answers.parquet").to_pylist(), TEXTS, rows, strict=True):
        both = [log_probabilities(models[role], row["prompt"], text) for role in ("policy", "reference")]
        wanted = [BETA * (sum(one) - sum(other)) for one, other in zip(*both, strict=True)]
        assert score is None if text == "\n" else score == pytest.approx(wanted, abs=1e-4)
    assert (found["rows"], found["without_steps"], found["steps"]) == (4, 1, pytest.approx(2.0))
    assert found["weakest"] == pytest.approx(sum(min(row) for row in rows if row) / 3)


def test_answers_without_a_step_stop_the_round_by_name(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(EmptyStageError, match="none of 2 answers has a step"):
        scored(tmp_path, models, answers(tmp_path / "answers", ["\n", " - "]))


def test_samples_have_them_as_a_column_which_is_empty_before_there_was_dpo(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    table = answers(tmp_path / "answers")
    scored(tmp_path, models, table)

    def run(**more: Path) -> tuple[dict[str, Any], list[Any]]:
        rewards = [{"use": "word-problems.py", "function": None, "weight": 1.0, "for": "scores"}]
        out = tmp_path / f"scored-{len(more)}"
        out.mkdir()
        job = Job({"rewards": rewards, "step_scores": True}, {"answers": table, **more}, out, out / "scratch", 0)
        return scores.run(job), pq.read_table(out / "scored.parquet")["step_scores"].to_pylist()

    metrics, column = run(step_scores=tmp_path / "out")
    assert column == pq.read_table(tmp_path / "out" / "step_scores.parquet")["step_scores"].to_pylist()
    assert "fallback" not in metrics
    metrics, column = run()
    assert column == [None] * 4 and "no step has a score" in metrics["fallback"][0]


def test_the_filter_drops_answers_whose_weakest_step_is_low() -> None:
    def passed(scores: list[list[float | None] | None], quantile: float) -> list[int]:
        kind = pa.schema(
            [("prompt", pa.string()), ("completion", pa.string()), ("step_scores", pa.list_(pa.float64()))]
        )
        rows = [{"prompt": "", "completion": str(at), "step_scores": one} for at, one in enumerate(scores)]
        batches = pa.Table.from_pylist(rows, schema=kind).to_batches(max_chunksize=2)
        kept = filters.run(batches, filters.parse([{"use": "steps", "quantile": quantile}]), FilterContext())
        return [int(text) for part in kept for text in part.kept["completion"].to_pylist()]

    weak: list[list[float | None] | None] = [[0.5, -3.0, 2.0], [0.1], [-0.5, 9.0], None, [-2.0, -1.0]]
    assert passed(weak, 0.25) == [1, 2, 3, 4]  # of −3, −2, −0.5, 0.1 one lies below the quartile, −2.375
    assert passed(weak, 0.5) == [1, 2, 3]
    assert passed([None, None], 0.5) == [0, 1]  # round 1
    assert passed([[None, -1.0], [None], [0.5, None]], 0.5) == [1, 2]  # steps without a token of their own
    whole = pa.table({"prompt": [""] * 2, "completion": ["0", "1"], "step_scores": [[1, -2], [3]]}).to_batches()
    (part,) = filters.run(whole, filters.parse([{"use": "steps", "quantile": 0.5}]), FilterContext())
    assert part.kept["completion"].to_pylist() == ["1"]
    without = pa.RecordBatch.from_pylist([{"prompt": "", "completion": "one"}])
    with pytest.raises(DataError, match="step_scores"):
        list(filters.run([without], filters.parse([{"use": "steps"}]), FilterContext()))
    batch = pa.RecordBatch.from_pylist([{"prompt": "", "completion": "one", "step_scores": 0.5}])
    with pytest.raises(DataError, match="holds double, not lists of numbers"):
        list(filters.run([batch], filters.parse([{"use": "steps"}]), FilterContext()))


def test_from_round_2_on_the_last_dpo_and_its_reference_score() -> None:
    runner = DryRunner()
    changes = ["step_scores={}", "filters=[{use: steps}, {use: best-of-k}]", "dpo.beta=0.2", "dpo.temperature=0.7"]
    play(load("quickstart", changes), runner, 3)
    made = [one for one in runner.stages if one.stage == "step_scores"]
    assert [one.number for one in made] == [2, 3]
    assert all(one.inputs["policy"] == f"{one.number - 1}/dpo" for one in made)
    assert all(one.inputs["reference"] == f"{one.number - 1}/sft" for one in made)
    assert all((one.config["beta"], one.config["temperature"]) == (0.2, 0.7) for one in made)
    reading = [one for one in runner.stages if one.stage == "scores"]
    assert [one.inputs.get("step_scores") for one in reading] == [None, "2/step_scores", "3/step_scores"]
    assert all(one.config["step_scores"] for one in reading)


@pytest.mark.parametrize(
    ("changes", "message", "rule"),
    [
        (["step_scores={}", "dpo=null"], "there is no DPO", "recipe-needs-section"),
        (["filters=[{use: steps}]"], "no step has a score", "recipe-needs-section"),
        (["step_scores={}", "dpo.loss_type=sft"], "the loss `sft` has none", "recipe-needs-section"),
        (["step_scores={}", "dpo.variants=[{temperature: 0.5}]"], "its variants have several", "recipe-values-clash"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], message: str, rule: str) -> None:
    with pytest.raises(RecipeError, match=message) as said:
        load("quickstart", changes)
    assert said.value.rule == rule


def test_every_stage_with_steps_is_told_what_ends_one() -> None:
    recipe = load("reasoning", ["step_ends=['. ', ';']", "step_reward={}", "step_scores={by: step_reward}"])
    told = {one.stage: one.config["step_ends"] for one in dry_run(recipe, 2) if "step_ends" in one.config}
    assert told == {name: [". ", ";"] for name in ("step_labels", "step_scores", "search")}
