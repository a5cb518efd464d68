"""Options of a training that this machine or the libraries refuse are told with key and line before anything runs."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import causal_lm, tokenizer
from typer.testing import CliRunner

from posttrain import shipped
from posttrain.cli import app
from posttrain.config.training import TRAINED
from posttrain.errors import RecipeError, StageError
from posttrain.job import Job
from posttrain.recipe.load import load
from posttrain.stages import trial
from posttrain.training.run import _check_rows

MODEL = shipped.locate("data", "tiny-base")


def tried(folder: Path, *changes: str, model: Path = Path(MODEL)) -> dict[str, Any]:
    """The trial of the quickstart's SFT with these changes."""
    recipe = load("quickstart", changes)
    assert recipe.sft
    section = recipe.sft.model_dump(mode="json", include={*recipe.sft.trl})
    config = {"trainings": [{"key": "sft", "stage": "sft", "section": section}], "model": recipe.model.in_key()}
    job = Job(config, {"model": model}, folder / "out", folder, 0, {"places": recipe.places})
    return trial.run(job)


@pytest.mark.parametrize(
    ("rule", "key", "changes"),
    [
        ("training-package-absent", "sft.optim", ["sft.optim=lomo"]),
        ("training-package-absent", "sft.use_liger_kernel", ["sft.use_liger_kernel=true"]),
        ("training-scheduler", "sft.lr_scheduler_type", ["sft.lr_scheduler_type=warmup_stable_decay"]),
        ("training-scheduler", "sft.lr_scheduler_type", ["sft.lr_scheduler_type=reduce_lr_on_plateau"]),
        ("training-scheduler", "sft.lr_scheduler_kwargs", ["sft.lr_scheduler_kwargs={minimum: 1e-6}"]),
        ("training-optimizer", "sft.adam_beta1", ["sft.adam_beta1=1.0"]),
        ("training-data-loader", "sft.dataloader_prefetch_factor", ["sft.dataloader_prefetch_factor=2"]),
        ("training-machine", "sft.tf32", ["sft.tf32=true"]),
        ("training-memory-option", "sft.activation_offloading", ["sft.activation_offloading=true"]),
        ("training-memory-option", "sft.fsdp", ["sft.fsdp=full_shard"]),
        ("training-step-fails", "sft.router_aux_loss_coef", ["sft.router_aux_loss_coef=0.1"]),
        # Two at once, neither of which is well without the other: the first of them.
        ("training-machine", "sft.tf32", ["sft.tf32=true", "sft.optim=lomo"]),
    ],
)
def test_an_option_that_fails_is_told_with_its_key(tmp_path: Path, rule: str, key: str, changes: list[str]) -> None:
    import torch

    if torch.cuda.is_available() and rule in ("training-machine", "training-memory-option"):
        pytest.skip("a machine with a GPU can")
    with pytest.raises(RecipeError) as told:
        tried(tmp_path, *changes)
    assert told.value.rule == rule
    assert told.value.message.startswith(f"{key}: ")
    assert told.value.hint and told.value.file and told.value.file.startswith("--set ")


@pytest.mark.parametrize(
    "changes",
    [
        ["sft.lr_scheduler_type=cosine_with_min_lr", "sft.lr_scheduler_kwargs={min_lr: 1e-6}"],
        ["sft.optim=adafactor", "sft.neftune_noise_alpha=5", "sft.gradient_checkpointing=true"],
        ["model.lora={}", "sft.dataloader_drop_last=true"],
    ],
)
def test_what_works_stays_accepted(tmp_path: Path, changes: list[str]) -> None:
    assert tried(tmp_path, *changes)["tried_as"] == {"sft": "llama"}


def test_rows_that_fill_no_batch_are_told_by_the_stage() -> None:
    class Trainer:
        class args:
            dataloader_drop_last = True
            per_device_train_batch_size = 4

        train_dataset = (1, 2, 3)

    with pytest.raises(StageError, match=r"sft\.dataloader_drop_last.*\[training-too-few-rows\]"):
        _check_rows("sft", Trainer())  # pyright: ignore[reportArgumentType] # as much of one as is looked at


def test_adapters_on_layers_that_the_stand_in_lacks_stay_accepted(tmp_path: Path) -> None:
    made = tried(tmp_path, "model.lora={target_modules: ['layers.20.self_attn.q_proj']}")
    assert made["tried_as"] == {"sft": "llama"}


class _Projecting(torch.optim.AdamW):
    """As GaLore's is called, without what it does."""


@pytest.fixture
def galore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules,
        "galore_torch",
        types.SimpleNamespace(GaLoreAdamW=_Projecting, GaLoreAdafactor=None, GaLoreAdamW8bit=None),
    )
    monkeypatch.setattr("transformers.trainer_optimizer.is_galore_torch_available", lambda: True)


@pytest.mark.usefixtures("galore")
@pytest.mark.parametrize(
    "names", ["['layers.3.mlp']", "['layers.3.self_attn', nowhere]", "'.*layers.3.*'", "all-linear"]
)
def test_an_optimizer_of_layers_that_the_stand_in_lacks_stays_accepted(tmp_path: Path, names: str) -> None:
    assert tried(tmp_path, "sft.optim=galore_adamw", f"sft.optim_target_modules={names}")["tried_as"] == {
        "sft": "llama"
    }


@pytest.mark.usefixtures("galore")
@pytest.mark.parametrize("names", ["['layers.20.mlp']", "'layers.3'", "[]"])
def test_an_optimizer_of_layers_that_the_model_lacks(tmp_path: Path, names: str) -> None:
    with pytest.raises(RecipeError, match=r"^--set \S+ sft\.optim_target_modules: .* names no linear layer") as told:
        tried(tmp_path, "sft.optim=galore_adamw", f"sft.optim_target_modules={names}")
    assert told.value.rule == "training-optimizer"


@pytest.mark.long
def test_a_sum_is_compiled_for_a_model_that_is_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, plain = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda what, **how: compiled.append(what) or plain(what, **how))
    assert tried(tmp_path, "sft.torch_compile_backend=eager")["tried_as"] == {"sft": "llama"}
    assert len(compiled) == 1 and not isinstance(compiled[0], torch.nn.Module)
    with pytest.raises(RecipeError, match=r"sft\.torch_compile_backend: ") as told:
        tried(tmp_path, "sft.torch_compile=true", "sft.torch_compile_backend=nowhere")
    assert told.value.rule == "training-machine"


@pytest.mark.slow
def test_a_type_that_cannot_be_tried_in_small_is_told(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 16, "long_factor": [1.0] * 16, "original_max_position_embeddings": 256}
    short = causal_lm("gpt2", n_positions=4)  # fewer than the rows of the trial have
    cases = {
        "made": causal_lm(
            "llama",
            hidden_size=128,
            head_dim=32,
            rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors},
        ),
        "trained": short,
    }
    says = {"made": "a small llama cannot be made (", "trained": "gpt2 in small fails whatever the options (IndexError"}
    for name, model in cases.items():
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        made = tried(tmp_path / "work", model=tmp_path / name)
        assert made["tried_as"] == {"sft": "a small Llama"}
        assert made["fallback"][0].startswith(f"sft was tried on a small Llama: {says[name]}"), made


@pytest.mark.slow
def test_a_round_ends_at_the_line_with_nothing_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "extends: quickstart\nname: mine\nsft:\n  learning_rate: 1e-4\nwatch:\n  reward_model:\n    optim: lomo\n"
    (tmp_path / "mine.yaml").write_text(lines)
    done = CliRunner().invoke(app, ["round", "./mine.yaml"])
    assert isinstance(done.exception, RecipeError)  # which `main` makes exit code 2
    assert "mine.yaml:7:5" in str(done.exception) and done.exception.rule == "training-package-absent"
    made = {path.name.rpartition("-")[0] for path in tmp_path.glob("runs/mine/artifacts/*")}
    assert made <= {"hardware", "prompts"}


@pytest.mark.slow
def test_every_trained_stage_is_tried(tmp_path: Path) -> None:
    recipe = load("quickstart", ["kto={}", "step_reward={}", "online={algorithm: rloo, normalize_advantages: true}"])
    sections = {name: getattr(recipe, name) for name in TRAINED}
    trainings = [
        {"key": name, "stage": name, "section": one.model_dump(mode="json", include={*one.trl, *one.made_with})}
        for name, one in sections.items()
    ]
    config = {"trainings": trainings, "model": recipe.model.in_key()}
    job = Job(config, {"model": Path(MODEL)}, tmp_path / "out", tmp_path, 0, {"places": recipe.places})
    assert trial.run(job)["tried_as"] == dict.fromkeys(TRAINED, "llama")
