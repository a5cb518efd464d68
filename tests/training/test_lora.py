"""LoRA in every trained stage, against sums done by hand: W + B·A · alpha / r. On a CPU, in float32."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from support.dpo import PAIRS, expected, loss, policy, trainer
from support.ranking import PAIRS as RANKED
from support.ranking import alone
from support.tiny_models import reward_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from posttrain.config import Dpo, Lora, Model, RewardModel, Sft
from posttrain.data.tables import PAIRS as PAIR_TABLE
from posttrain.errors import InputError
from posttrain.job import Job, no_progress
from posttrain.stages import run_stage
from posttrain.storage.files import read_json
from posttrain.training import run
from posttrain.training.averaging import average
from posttrain.training.lora import merged_into

BASE = Path(__file__).parents[2] / "data" / "tiny-base"
RANK, ALPHA = 2, 8.0
LORA = {"r": RANK, "lora_alpha": ALPHA, "adapters": "keep"}

Weights = dict[str, torch.Tensor]


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folder


def table(folder: Path, name: str, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
    return folder


def trained(
    folder: Path,
    section: Any,
    inputs: dict[str, Path],
    lora: dict[str, Any] = LORA,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = no_progress,
    **settings: Any,
) -> tuple[dict[str, Any], Path]:
    """Metrics and artifact of the stage whose section this is."""
    name = section.trainer
    config = {name: section.model_dump(), "model": {"dtype": "float32", "lora": lora}}
    job = Job(config, inputs, folder / "out", folder / "scratch", seed, settings, progress=progress)
    for path in (job.out, job.scratch):
        path.mkdir(parents=True, exist_ok=True)
    return run_stage(name, job), job.out


def fields(**more: Any) -> dict[str, Any]:
    return {"per_device_train_batch_size": 4, "bf16": False, "learning_rate": 1e-2, "logging_steps": 1, **more}


def kept(folder: Path) -> Path:
    rows = [
        {
            "prompt_id": str(number),
            "sample_index": 0,
            "prompt": [{"role": "user", "content": f"{number} + 1?"}],
            "completion": [{"role": "assistant", "content": f"Answer: {number + 1}"}],
            "score": 1.0,
        }
        for number in range(8)
    ]
    return table(folder, "kept", rows)


def sft(folder: Path, model: Path, data: Path, **options: Any) -> Path:
    section = Sft.model_validate(fields(num_train_epochs=2.0))
    return trained(folder, section, {"model": model, "kept": data}, **options)[1]


def deltas(adapter: Weights, prefix: str = "base_model.model.") -> Weights:
    """{name of a weight: B·A · alpha / r}."""
    return {
        name.removeprefix(prefix).replace("lora_A.", "").replace("default.", ""): (
            adapter[name.replace("lora_A", "lora_B")] @ adapter[name] * (ALPHA / RANK)
        )
        for name in adapter
        if "lora_A" in name
    }


def close(found: Weights, wanted: Weights) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0, msg=name)


def weights(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def adapter_of(artifact: Path) -> Weights:
    return load_file(artifact / "adapter" / "adapter_model.safetensors")


def test_the_mean_of_variants_is_the_start_and_the_mean_of_their_deltas(tmp_path: Path) -> None:
    """Fails where adapters are left out of what is saved, or where their factors are averaged: mean B · mean A is not
    the mean of B·A."""
    start, data = saved(policy(), tmp_path / "start"), kept(tmp_path / "kept")
    made = [sft(tmp_path / str(seed), start, data, seed=seed) for seed in (0, 1)]
    one, other = (deltas(adapter_of(artifact)) for artifact in made)
    assert len(one) == 2 * 7  # every projection of both layers, and not the output layer
    assert all(max(delta.abs().max() for delta in each.values()) > 1e-3 for each in (one, other))
    (tmp_path / "mean").mkdir()
    average(made, tmp_path / "mean")
    wanted = {
        name: weight + (one[name] + other[name]) / 2 if name in one else weight
        for name, weight in weights(start).items()
    }
    close(weights(tmp_path / "mean"), wanted)
    factors = {name: (part + adapter_of(made[1])[name]) / 2 for name, part in adapter_of(made[0]).items()}
    assert max((deltas(factors)[name] - (one[name] + other[name]) / 2).abs().max() for name in one) > 1e-3


def test_a_kept_adapter_names_what_it_belongs_on_and_gives_the_same_model(tmp_path: Path) -> None:
    start, data = saved(policy(), tmp_path / "sft-0123456789abcdef"), kept(tmp_path / "kept")
    keep = sft(tmp_path / "keep", start, data)
    plain = sft(tmp_path / "merge", start, data, lora={**LORA, "adapters": "merge"})
    assert not (plain / "adapter").exists()
    assert all(torch.equal(weight, weights(plain)[name]) for name, weight in weights(keep).items())
    again: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start), str(keep / "adapter"))
    close(dict(again.merge_and_unload().state_dict()), weights(keep))
    config = read_json(keep / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == start.name  # an artifact's folder is called by its key
    assert {path.name for path in (keep / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert str(tmp_path) not in (keep / "adapter" / "adapter_config.json").read_text()


def test_an_adapter_of_a_model_from_the_hub_names_id_and_commit(tmp_path: Path) -> None:
    start, data = saved(policy(), tmp_path / "start"), kept(tmp_path / "kept")
    hub = {"base_model_name_or_path": "owner/name", "revision": "0123abc"}
    config = read_json(sft(tmp_path / "run", start, data, start=hub) / "adapter" / "adapter_config.json")
    assert {name: config[name] for name in hub} == hub


def preferences(folder: Path) -> Path:
    rows = [
        {**row, "prompt_id": str(number), "margin": 1.0, "source": "", "split": "train", "columns": "{}"}
        for number, row in enumerate(RANKED)
    ]
    return table(folder, "pairs", rows, PAIR_TABLE)


def test_the_reward_head_is_trained_with_the_adapter_and_saved_with_it(tmp_path: Path) -> None:
    """One step of Adam moves each weight by learning rate · g / (|g| + 1e-8), and the gradient g is that of the loss
    over rows of their own. Fails where the head is frozen, or left out of what is saved."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    plain = reward_model("llama", vocab_size=640)
    start = saved(plain, tmp_path / "start")
    section = RewardModel.model_validate(fields(max_steps=1, max_grad_norm=1e9, weight_decay=0.0))
    inputs = {"model": start, "preferences_1": preferences(tmp_path / "preferences")}
    _, made = trained(tmp_path / "run", section, inputs)

    losses = []
    for row in RANKED:
        scores = torch.stack(_scores(plain, tokenizer, row))
        gaps = [scores[i] - scores[j] for i in range(len(scores)) for j in range(i + 1, len(scores))]
        losses.append(-torch.nn.functional.logsigmoid(torch.stack(gaps)).mean())
    (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), [plain.score.weight])
    head = plain.score.weight.detach() - 1e-2 * gradient / (gradient.abs() + 1e-8)
    assert gradient.abs().min() > 1e-6  # else its sign would be noise

    torch.testing.assert_close(weights(made)["score.weight"], head, atol=1e-5, rtol=0)
    adapter = adapter_of(made)
    assert torch.equal(adapter["base_model.model.score.weight"], weights(made)["score.weight"])
    changed = deltas(adapter)
    wanted = {name: weight + changed.get(name, 0.0) for name, weight in weights(start).items()}
    close(weights(made), {**wanted, "score.weight": weights(made)["score.weight"]})


def _scores(model: Any, tokenizer: Any, row: dict[str, Any]) -> list[torch.Tensor]:
    """As `alone` of the ranking tests, with a gradient."""
    found = []
    for side in ("edited", "chosen", "rejected"):
        if row[side]:
            text = tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
            found.append(model(torch.tensor([tokenizer.encode(text, add_special_tokens=False)])).logits[0, 0])
    return found


def test_a_reward_model_from_a_base_without_a_head_keeps_the_new_one(tmp_path: Path) -> None:
    """What is loaded scores as the start with adapter and head put in by hand; the head has moved from its draw."""
    start, pairs = saved(policy(), tmp_path / "start"), preferences(tmp_path / "preferences")
    heads = []
    for rate in (1e-2, 1e-12):  # the second does not move: the head as the seed drew it
        section = RewardModel.model_validate(fields(max_steps=3, learning_rate=rate))
        _, made = trained(tmp_path / str(rate), section, {"model": start, "preferences_1": pairs})
        heads.append(weights(made)["score.weight"])
    assert (heads[0] - heads[1]).abs().min() > 1e-3
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "0.01" / "out").eval()
    adapter = adapter_of(tmp_path / "0.01" / "out")
    hand = reward_model("llama", vocab_size=640)
    changed = deltas(adapter)
    parts = {name: weight + changed.get(name, 0.0) for name, weight in weights(start).items()}
    del parts["lm_head.weight"]
    hand.load_state_dict({**parts, "score.weight": adapter["base_model.model.score.weight"]})
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for row in RANKED:
        assert alone(loaded, tokenizer, row) == pytest.approx(alone(hand, tokenizer, row), abs=1e-5)


def test_a_training_that_was_stopped_goes_on_with_its_adapter_and_head(tmp_path: Path) -> None:
    inputs = {"model": saved(policy(), tmp_path / "start"), "preferences_1": preferences(tmp_path / "preferences")}
    section = RewardModel.model_validate(fields(max_steps=4, save_steps=2))
    _, whole = trained(tmp_path / "whole", section, inputs)

    def stop(done: int, total: int, unit: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", section, inputs, progress=stop)
    metrics, again = trained(tmp_path / "stopped", section, inputs)
    assert metrics["resumed_at"] == 2
    assert all(torch.equal(weight, weights(again)[name]) for name, weight in weights(whole).items())


def pairs(folder: Path) -> Path:
    rows = [
        {**row, "prompt_id": str(number), "margin": 1.0, "source": "", "split": "train", "columns": "{}"}
        for number, row in enumerate(PAIRS)
    ]
    return table(folder, "pairs", rows, PAIR_TABLE)


@pytest.mark.parametrize("precompute", [True, False])
def test_dpos_reference_under_lora_is_the_one_that_is_named(tmp_path: Path, precompute: bool) -> None:
    """Fails where the policy with its adapter off is taken instead: before the first step the loss would be log 2."""
    inputs = {"model": saved(policy(), tmp_path / "policy"), "pairs": pairs(tmp_path / "pairs")}
    section = Dpo.model_validate(
        fields(max_steps=1, beta=0.3, nll_weight=0.0, precompute_ref_log_probs=precompute, pairs_from="pairs")
    )
    metrics, _ = trained(tmp_path / "start", section, inputs)
    assert metrics["loss"] == pytest.approx(0.693147, abs=1e-5)
    inputs["reference"] = saved(policy(7), tmp_path / "reference")
    metrics, _ = trained(tmp_path / "named", section, inputs)
    assert metrics["loss"] == pytest.approx(expected(policy(7), mask_format=True), abs=1e-5)
    assert abs(metrics["loss"] - 0.693147) > 1e-2


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("precompute", [True, False])
def test_dpos_reference_stays_what_it_was_while_the_adapter_learns(
    tmp_path: Path, precompute: bool, named: bool
) -> None:
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=RANK, lora_alpha=int(ALPHA), target_modules="all-linear")
    reference = policy(7) if named else None
    made = trainer(tmp_path, reference, precompute=precompute, peft_config=config, nll_weight=0.2)
    learned = _learn(made.model)
    model = policy()
    changed = deltas(learned)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(changed.get(name, 0.0))
    wanted = expected(policy(7) if named else policy(), mask_format=True, nll_weight=0.2, trained=model)
    assert loss(made) == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted - expected(model, mask_format=True, nll_weight=0.2, trained=model)) > 1e-2


def _learn(model: Any) -> Weights:
    """Fill the adapter's B, which begins as zeros, and return its weights."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("kind", ["policy", "reward model"])
def test_what_was_trained_on_rounded_weights_is_merged_into_the_whole_ones(tmp_path: Path, kind: str) -> None:
    """A stand-in for four bits, which no CPU has: the same adapter on weights that were rounded after loading."""
    whole, task = policy(), TaskType.CAUSAL_LM
    if kind == "reward model":
        whole, task = reward_model("llama", vocab_size=640), TaskType.SEQ_CLS
    start = saved(whole, tmp_path / "start")
    head = ["score"] if kind == "reward model" else None
    config = LoraConfig(
        task_type=task, r=RANK, lora_alpha=int(ALPHA), target_modules="all-linear", modules_to_save=head
    )
    model: Any = get_peft_model(copy.deepcopy(whole), config)
    learned = _learn(model)
    wanted = {name: weight + deltas(learned).get(name, 0.0) for name, weight in weights(start).items()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" not in name:
                weight.copy_((weight * 8).round() / 8)
            if head and "modules_to_save" in name:
                wanted["score.weight"] = weight.fill_(0.25).clone()
    found = merged_into(model, start)
    close({name: weight.detach() for name, weight in found.state_dict().items()}, wanted)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (model.merge_and_unload().state_dict()[name] - wanted[name]).abs().max() > 1e-2  # what peft alone would do


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_four_bits_without_a_gpu_are_refused_before_anything_is_sampled_or_trained(tmp_path: Path) -> None:
    lora = Lora(load_in_4bit=True).model_dump()
    job = Job({"model": {"dtype": "float32", "lora": lora}}, {"model": BASE}, tmp_path, tmp_path, 0)
    needs = r"load_in_4bit needs the package bitsandbytes .* and a CUDA GPU; missing here: .*a CUDA GPU"
    with pytest.raises(InputError, match=needs) as caught:
        run.fields(Sft(), job, cuda=False)
    assert caught.value.exit_code == 2
    with pytest.raises(InputError, match=needs):
        run_stage("prompts", Job({}, {"model": BASE}, tmp_path, tmp_path, 0, {"load_in_4bit": True}))
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_what_four_bits_need_and_leaves_no_run(tmp_path: Path) -> None:
    given = ["round", "--n", "1", "--run", str(tmp_path / "run"), "--set", "model.lora.load_in_4bit=true"]
    done = subprocess.run([sys.executable, "-m", "posttrain", *given], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "bitsandbytes" in done.stderr and "CUDA GPU" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_keys_that_came_later_are_in_no_key_until_they_are_set() -> None:
    first = Model(path="tiny-base", lora=Lora(r=4))
    assert first.in_key() == {
        "dtype": "float32",
        "lora": {"r": 4, "lora_alpha": 32.0, "lora_dropout": 0.0, "target_modules": "all-linear"},
    }
    assert Model(path="tiny-base").in_key() == {"dtype": "float32", "lora": None}
    later = Model(path="tiny-base", lora=Lora(adapters="keep", load_in_4bit=True)).in_key()["lora"]
    assert (later["adapters"], later["load_in_4bit"]) == ("keep", True)
