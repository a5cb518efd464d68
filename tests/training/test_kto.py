"""KTO against plain torch: its loss, the KL term of a step, and what the stage learns from."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from support.dpo import BASE, by_hand, policy, says
from transformers import AutoTokenizer
from trl import KTOConfig

from posttrain.config.kto import Kto
from posttrain.data.messages import prompt_id
from posttrain.data.tables import SCORED_ANSWERS
from posttrain.errors import EmptyStageError, StageError
from posttrain.job import Job
from posttrain.stages import run_stage
from posttrain.storage.pieces import Pieces
from posttrain.training.kto import LabelledCollator, StepKTOTrainer, in_steps, labelled_rows, partners

BETA = 0.3
ANSWERS = [
    {"prompt": says(("user", "3 + 4?")), "completion": says(("assistant", "Answer: 7")), "label": True},
    {"prompt": says(("user", "3 + 5?")), "completion": says(("assistant", "I do not know, sorry.")), "label": False},
    {
        "prompt": says(("user", "Hello")),
        "completion": says(("assistant", "Hi!"), ("user", "And 1 + 1?"), ("assistant", "2")),
        "label": True,
    },
    {"prompt": says(("user", "2 + 2?")), "completion": says(("assistant", "It may be 5 or so")), "label": False},
    {"prompt": says(("user", "1 + 2?")), "completion": says(("assistant", "3")), "label": True},
]


def trained() -> Any:
    return policy(7)


def reference() -> Any:
    """Under which foreign answers are less likely, so that the KL term is above 0."""
    return policy()


def trainer(folder: Path, micro_batch: int, accumulation: int = 1, **options: Any) -> StepKTOTrainer:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows, dropped = labelled_rows(tokenizer, ANSWERS, 512)
    assert not any(dropped.values())
    args = KTOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        max_length=None,
        report_to="none",
        beta=BETA,
        learning_rate=1e-2,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        loss_type=options.get("loss_type", "kto"),
        desirable_weight=options.get("desirable_weight", 1.0),
        undesirable_weight=options.get("undesirable_weight", 1.0),
    )
    return StepKTOTrainer(
        model=trained(),
        ref_model=reference(),
        args=args,
        train_dataset=in_steps(rows, micro_batch * accumulation, 0, with_kl=args.loss_type == "kto"),
        processing_class=tokenizer,
        data_collator=LabelledCollator(0),
        pieces=Pieces(Path(tempfile.mkdtemp(dir=folder))),
    )


def steps(made: StepKTOTrainer) -> list[list[float]]:
    """The loss of each micro-batch of each step, nothing learned in between."""
    assert made.model is not None
    batches, losses = iter(made.get_train_dataloader()), []
    while found := made.get_batch_samples(batches, made.args.gradient_accumulation_steps, torch.device("cpu"))[0]:
        losses.append([made.compute_loss(made.model, batch).item() for batch in found])
    return losses


def in_order(made: StepKTOTrainer) -> list[dict[str, Any]]:
    """The answers as the trainer goes through them."""
    rows, _ = labelled_rows(AutoTokenizer.from_pretrained(BASE), ANSWERS, 512)
    known: Any = rows["prompt_ids"]
    rows = made.train_dataset
    assert rows is not None
    return [ANSWERS[list(known).index(ids)] for ids in rows["prompt_ids"]]


def ratio(prompt: Any, completion: Any) -> float:
    """log p − log p_ref of what the assistant says, its ending included."""
    row = {"prompt": prompt, "chosen": completion}
    return by_hand(trained(), row, "chosen", ending=True)[0] - by_hand(reference(), row, "chosen", ending=True)[0]


def expected(rows: list[dict[str, Any]], weights: tuple[float, float] = (1.0, 1.0), kl: bool = True) -> float:
    """Equation 7 over one step. The KL term: each prompt with the answer of the row before it, round the step."""
    foreign = [ratio(row["prompt"], rows[at - 1]["completion"]) for at, row in enumerate(rows)]
    z = max(0.0, sum(foreign) / len(foreign)) if kl else 0.0
    losses = []
    for row in rows:
        margin = ratio(row["prompt"], row["completion"]) - z
        value = 1 / (1 + math.exp(-BETA * (margin if row["label"] else -margin)))
        losses.append(weights[0 if row["label"] else 1] * (1 - value))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
def test_the_loss_is_that_of_the_paper(tmp_path: Path, weights: tuple[float, float]) -> None:
    made = trainer(tmp_path, 5, desirable_weight=weights[0], undesirable_weight=weights[1])
    ((loss,),) = steps(made)
    assert loss == pytest.approx(expected(in_order(made), weights), abs=1e-5)
    assert abs(loss - expected(in_order(made), weights, kl=False)) > 1e-3  # the KL term is not 0 here


@pytest.mark.parametrize(("micro_batch", "accumulation"), [(1, 5), (2, 3)])
def test_the_kl_term_is_that_of_the_step_whatever_fits_into_memory(
    tmp_path: Path, micro_batch: int, accumulation: int
) -> None:
    """TRL's own is of a micro-batch: fails without `get_batch_samples`."""
    made = trainer(tmp_path, micro_batch, accumulation)
    (losses,) = steps(made)
    sizes = [len(ANSWERS[at : at + micro_batch]) for at in range(0, len(ANSWERS), micro_batch)]
    mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / len(ANSWERS)
    assert mean == pytest.approx(expected(in_order(made)), abs=1e-5)


def test_a_row_that_is_alone_in_the_last_step_is_paired_with_the_one_before(tmp_path: Path) -> None:
    made = trainer(tmp_path, 2, 2)
    first, (alone,) = steps(made)
    rows = in_order(made)
    assert sum(first) / 2 == pytest.approx(expected(rows[:4]), abs=1e-5)
    z = max(0.0, ratio(rows[4]["prompt"], rows[3]["completion"]))
    margin = ratio(rows[4]["prompt"], rows[4]["completion"]) - z
    assert alone == pytest.approx(1 / (1 + math.exp(BETA * (margin if rows[4]["label"] else -margin))), abs=1e-5)


def test_the_loss_without_a_kl_term(tmp_path: Path) -> None:
    """APO-zero, unpaired (2408.06266): 1 − σ(β r) of good answers, σ(β r) of bad ones."""
    made = trainer(tmp_path, 5, loss_type="apo_zero_unpaired")
    ((loss,),) = steps(made)
    assert loss == pytest.approx(expected(in_order(made), kl=False), abs=1e-5)


def test_a_micro_batch_of_one_row_learns_what_the_whole_step_does(tmp_path: Path) -> None:
    weights = []
    for micro_batch in (1, 5):
        made = trainer(tmp_path, micro_batch, 5 // micro_batch)
        made.train()
        assert made.model is not None
        weights.append(torch.cat([each.detach().flatten() for each in made.model.parameters()]))
    assert torch.allclose(*weights, atol=2e-5)
    assert not torch.allclose(weights[0], torch.cat([each.flatten() for each in trained().parameters()]), atol=1e-3)


@pytest.mark.parametrize(
    ("prompts", "batch", "wanted"),
    [
        ([[1], [2], [3], [4]], 4, [3, 0, 1, 2]),
        ([[1], [2], [3], [4]], 2, [1, 0, 3, 2]),
        ([[1], [1], [2], [2]], 4, [2, 3, 0, 1]),  # by two: by one, half are answers to their own prompt
        ([[1], [2], [3]], 2, [1, 0, 1]),
        ([[1], [1]], 2, [1, 0]),
    ],
)
def test_a_prompt_is_paired_with_an_answer_to_another_one_of_its_step(
    prompts: list[list[int]], batch: int, wanted: list[int]
) -> None:
    assert partners(prompts, batch) == wanted


def samples(folder: Path, scores: Sequence[float | None]) -> Path:
    rows = [
        {
            "prompt_id": f"p{number // 2}",
            "sample_index": number % 2,
            "prompt": says(("user", f"{number // 2} + 1?")),
            "completion": says(("assistant", f"Answer: {number}")),
            "columns": "{}",
            "rewards": "{}",
            "score": score,
        }
        for number, score in enumerate(scores)
    ]
    folder.mkdir()
    schema = SCORED_ANSWERS.append(pa.field("score", pa.float64()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "scored.parquet")
    return folder


def learned(
    folder: Path,
    scores: Sequence[float | None] | None,
    thumbs: list[dict[str, Any]] | None = None,
    lora: dict[str, Any] | None = None,
    **section: Any,
) -> dict[str, Any]:
    kto = Kto.model_validate(
        {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "bf16": False, "num_train_epochs": 1, **section}
    )
    inputs, runtime = {"model": BASE}, {"kto": kto.not_in_key(), "places": {"kto.threshold": ("mine.yaml", 7, 3)}}
    if scores is not None:
        inputs["samples"] = samples(folder / "samples", scores)
    if thumbs is not None:
        path = folder / "thumbs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in thumbs), "utf-8")
        runtime["given"] = {"set": {"path": str(path)}, "system": None}
        inputs["prompts"] = folder / "prompts"
        inputs["prompts"].mkdir()
        for name, text in (("dev", "in dev?"), ("heldout", "held out?")):
            pq.write_table(pa.table({"id": [prompt_id(says(("user", text)))]}), inputs["prompts"] / f"{name}.parquet")
    config = {"kto": kto.in_key(), "model": {"dtype": "float32", "lora": lora}}
    job = Job(config, inputs, folder / "out", folder / "scratch", 0, runtime)
    for path in (job.out, job.scratch):
        path.mkdir()
    return run_stage("kto", job)


GIVEN = [
    {"prompt": "9 + 1?", "completion": "Answer: 10", "label": True},
    {"prompt": "9 + 1?", "completion": "No.", "label": False},
]


def test_answers_between_the_thresholds_are_left_out_and_counted(tmp_path: Path) -> None:
    scores = [1.0, 0.8, 0.5, 0.2, 0.0, 0.81, None, 0.1]
    found = learned(tmp_path, scores, threshold={"good": 0.8, "bad": 0.2})
    assert found["labels"] == {"good": 3, "bad": 3}
    assert found["dropped"] == {"between_thresholds": 1, "unscored": 1, "too_long": 0, "no_tokens": 0}
    assert (found["rows"], found["sources"], found["steps"]) == (6, {"samples": 6}, 2)


def test_given_answers_and_samples_together(tmp_path: Path) -> None:
    given = {"path": str(tmp_path / "thumbs.jsonl")}
    thumbs = [*GIVEN, GIVEN[0], {"prompt": "in dev?", "completion": "Yes.", "label": True}]
    found = learned(tmp_path, [0.5, 0.49], thumbs, rows_from=["samples", "given"], given=given)
    assert found["labels"] == {"good": 2, "bad": 2}
    assert found["sources"] == {"given": 2, "samples": 2}
    assert (found["dropped"]["duplicate"], found["dropped"]["in_an_evaluation_set"]) == (1, 1)


def test_lora_trains_the_adapter_alone_and_its_reference_is_the_model_without_it(tmp_path: Path) -> None:
    found = learned(tmp_path, [1.0, 0.0, 1.0, 0.0], lora={"r": 2, "lora_alpha": 8.0, "adapters": "keep"})
    assert found["steps"] == 1
    assert found["first_loss"] == pytest.approx(0.5, abs=1e-6)  # the policy is the reference, and so z is 0
    before, after = load_file(BASE / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    adapter = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name].float())}
    adapted = {name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight") for name in adapter}
    assert changed and changed <= adapted
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()


def test_the_reference_is_asked_of_the_rows_that_there_are_steps_for(tmp_path: Path) -> None:
    found = learned(tmp_path, [1.0, 0.0] * 10, max_steps=1)
    assert (found["rows"], found["steps"]) == (4, 1)


def test_a_batch_that_does_not_fit_is_split_down_to_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = StepKTOTrainer.training_step

    def small(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        if len(inputs["label"]) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return whole(self, model, inputs, *rest)

    monkeypatch.setattr(StepKTOTrainer, "training_step", small)
    found = learned(tmp_path, [1.0, 0.0] * 4)
    assert (found["micro_batch"], found["steps"]) == (1, 2)


def test_not_even_a_row_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Any, *given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(StepKTOTrainer, "_precompute_ref_logps", none)  # while the trainer is made
    with pytest.raises(StageError, match="memory is too small for a single row"):
        learned(tmp_path, [1.0, 0.0] * 4)


@pytest.mark.parametrize(
    ("scores", "threshold", "said"),
    [
        ([1.0, 0.9, 0.8], 0.5, "no bad answer is left at mine.yaml:7: 3 good, 0 bad"),
        ([0.1, 0.2], 0.5, "no good answer is left"),
        ([0.4, 0.6], {"good": 0.9, "bad": 0.1}, '"between_thresholds": 2'),
    ],
)
def test_thresholds_that_leave_one_kind_alone(
    tmp_path: Path, scores: list[float | None], threshold: Any, said: str
) -> None:
    with pytest.raises(EmptyStageError) as raised:
        learned(tmp_path, scores, threshold=threshold)
    assert said in str(raised.value) and raised.value.rule == "training-one-label"
