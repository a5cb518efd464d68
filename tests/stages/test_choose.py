"""The mean of models against the best of them: by the gate's paired test on dev."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.ranking import alone, pair
from support.tiny_models import reward_model
from transformers import AutoTokenizer

from posttrain import shipped
from posttrain.data.tables import PAIRS, SAMPLED
from posttrain.errors import ModelError, StageError
from posttrain.job import Job
from posttrain.stages import prompts, run_stage
from posttrain.stages.choose import choose

BASE = shipped.locate("data", "tiny-base")


def by_prompt(*values: float) -> dict[str, float]:
    return {f"prompt {at}": value for at, value in enumerate(values)}


def test_the_mean_goes_on_unless_it_is_worse_than_the_best_by_a_paired_test() -> None:
    best = by_prompt(*[1.0, 0.5] * 50)
    worst = by_prompt(*[0.0] * 100)
    nearly = by_prompt(*[1.0, 0.5] * 49, 1.0, 0.25)  # lower by 0.25 on one of 100 prompts: its interval reaches 0
    chosen, difference = choose({"mean": nearly, "model_1": worst, "model_2": best}, 0)
    assert chosen == "mean"
    assert difference["value"] == pytest.approx(-0.25 / 100)
    worse = {name: value - 0.1 for name, value in best.items()}
    chosen, difference = choose({"mean": worse, "model_1": worst, "model_2": best}, 0)
    assert (chosen, difference["value"]) == ("model_2", pytest.approx(-0.1))


def test_models_that_nothing_on_dev_judges_are_an_error() -> None:
    with pytest.raises(StageError, match="nothing on dev scores"):
        choose({"mean": {}, "model_1": {}}, 0)


def dev(folder: Path, count: int = 6) -> Path:
    """The prompts artifact, with the first dev prompts of the quickstart that have an answer."""
    rows = [
        json.loads(line) for line in shipped.locate("data", "word-problems.dev.jsonl").read_text("utf-8").splitlines()
    ]
    rows = [row for row in rows if row["answer"] is not None][: 3 * count]
    paths = {}
    for at, name in enumerate(("dev", "train", "heldout")):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[at * count : (at + 1) * count]), "utf-8")
        paths[name] = {"path": str(path)}
    out = folder / "prompts"
    out.mkdir()
    settings = {"prompts": paths, "rewards": [{"use": "word-problems.py"}]}
    prompts.run(Job({"max_new_tokens": 24}, {"model": BASE}, out, folder, 0, settings))
    return out


def shifted(folder: Path, by: float) -> Path:
    """The tiny base with all its weights larger by `by`."""
    folder.mkdir()
    for path in BASE.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(BASE / "model.safetensors")
    save_file({name: weight + by for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def run(
    folder: Path, models: list[Path], alone: int, rewards: tuple[str, ...] = ("word-problems.py",), **judges: Path
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the stage says, and the weights that go on. `judges`: what else the models are compared by."""
    inputs = {f"model_{number}": model for number, model in enumerate(models, 1)}
    stage(folder, "average", "mean", {}, inputs)
    candidates = {"mean": folder / "mean", **{str(number): models[number - 1] for number in range(1, alone + 1)}}
    answers = {}
    if not any(name.startswith("preferences") for name in judges):
        asked = {"prompts": dev(folder)}
        for name, policy in candidates.items():
            stage(folder, "answers", f"answers_{name}", ASKED, {**asked, "policy": policy})
            answers[f"answers_{name}"] = folder / f"answers_{name}"
    config = {"choose": {"alone": alone}, "rewards": [{"use": use} for use in rewards]}
    metrics = stage(folder, "choose", "out", config, {"mean": folder / "mean", **inputs, **answers, **judges})
    return metrics, load_file(folder / "out" / "model.safetensors")


ASKED = {
    "set": "dev",
    "answers": {"k": 8, "temperature": 0.5, "top_p": 1.0, "max_new_tokens": 24},
    "tag": SAMPLED,
    "greedy": False,
    "further": [],
    "system": None,
    "engine": {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 2000},
}


def stage(folder: Path, name: str, out: str, config: dict[str, Any], inputs: dict[str, Path]) -> dict[str, Any]:
    """Runs a stage whose artifact is the folder `out`."""
    scratch = folder / f"{out}-scratch"
    for made in (folder / out, scratch):
        made.mkdir()
    return run_stage(name, Job(config, inputs, folder / out, scratch, 0))


def test_copies_of_one_model_give_that_model(tmp_path: Path) -> None:
    metrics, weights = run(tmp_path, [BASE, BASE], 2)
    assert (metrics["chosen"], metrics["averaged"]) == ("mean", 2)
    assert metrics["dev"]["mean"]["value"] == metrics["dev"]["model_1"]["value"] > 0
    assert all(torch.equal(weights[name], weight) for name, weight in load_file(BASE / "model.safetensors").items())


def test_where_averaging_does_harm_the_best_model_goes_on_and_the_artifact_says_so(tmp_path: Path) -> None:
    """Fails where the mean always goes on: the mean with a model that was pushed far away answers nothing right."""
    good = shifted(tmp_path / "good", 0.0)
    (good / "adapter").mkdir()
    (good / "adapter" / "adapter_config.json").write_text("{}")
    metrics, weights = run(tmp_path, [good, shifted(tmp_path / "far", 1.0)], 2)
    assert metrics["chosen"] == "model_1"
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    assert metrics["mean_minus_best"]["ci95"][1] < 0
    assert all(torch.equal(weights[name], weight) for name, weight in load_file(BASE / "model.safetensors").items())


def test_models_of_other_shapes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    other = shifted(tmp_path / "other", 0.0)
    weights = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, name: weights[name][:-1].clone()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=re.escape(f"cannot average {name}")):
        run(tmp_path, [BASE, other], 2)
    assert not list(tmp_path.glob("mean/*.safetensors"))


def judge(folder: Path, factor: float = 1.0) -> Path:
    """A small reward model whose every reward is `factor` times that of the others."""
    model = reward_model("llama", vocab_size=640)
    with torch.no_grad():
        model.score.weight.mul_(factor)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folder


def heldout(folder: Path, split: str = "heldout") -> Path:
    """Pairs that `judge` with a factor above 0 gets right, each, by its scores of rows of their own."""
    model, tokenizer = reward_model("llama", vocab_size=640), AutoTokenizer.from_pretrained(BASE)
    rows = []
    for number in range(12):
        row = pair(f"{number} + 4?", f"Answer: {number + 4}", f"It may be {number}.")
        chosen, rejected = alone(model, tokenizer, row)
        if chosen < rejected:
            row = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        rows.append({**row, "prompt_id": str(number), "margin": 1.0, "source": "", "split": split, "columns": "{}"})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), folder / "pairs.parquet")
    return folder


def test_reward_models_are_compared_on_the_pairs_held_out_from_training(tmp_path: Path) -> None:
    """A model that ranks all pairs right, and one that ranks them the other way round: their mean says 0 of all."""
    right, wrong = judge(tmp_path / "right"), judge(tmp_path / "wrong", -1.0)
    metrics, weights = run(tmp_path, [wrong, right], 2, preferences_1=heldout(tmp_path / "pairs"))
    assert {name: figure["value"] for name, figure in metrics["dev"].items()} == {
        "mean": 0.0,
        "model_1": 0.0,
        "model_2": 1.0,
    }
    assert (metrics["chosen"], metrics["pair_accuracy"]["value"]) == ("model_2", 1.0)
    assert torch.equal(weights["score.weight"], load_file(right / "model.safetensors")["score.weight"])


def test_the_mean_of_reward_models_that_agree_goes_on(tmp_path: Path) -> None:
    models = [judge(tmp_path / "one"), judge(tmp_path / "three", 3.0)]
    metrics, weights = run(tmp_path, models, 2, preferences_1=heldout(tmp_path / "pairs"))
    assert (metrics["chosen"], metrics["pair_accuracy"]["value"]) == ("mean", 1.0)
    twice = 2 * load_file(models[0] / "model.safetensors")["score.weight"]
    torch.testing.assert_close(weights["score.weight"], twice, atol=1e-7, rtol=0)


def test_without_pairs_held_out_the_error_says_what_to_raise(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"raise preferences\.prompts or preferences\.heldout"):
        run(tmp_path, [judge(tmp_path / "one")], 1, preferences_1=heldout(tmp_path / "pairs", "train"))


def test_where_no_function_judges_the_rounds_reward_model_does(tmp_path: Path) -> None:
    metrics, _ = run(tmp_path, [BASE, BASE], 2, (), reward_model=judge(tmp_path / "judge"))
    model, tokenizer = reward_model("llama", vocab_size=640), AutoTokenizer.from_pretrained(BASE)
    answers = pq.read_table(tmp_path / "out-scratch" / "scored-1.parquet").to_pylist()
    scores = [
        alone(model, tokenizer, {**row, "edited": None, "rejected": None, "chosen": row["completion"]})[0]
        for row in answers
    ]
    assert len(scores) == 6 * 8
    assert metrics["dev"]["model_1"]["value"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
