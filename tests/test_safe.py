"""What must not happen by default: code that runs from a file, a folder that is left, a token that is written."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.interrupted import BASE, Killed, Training

from posttrain import models
from posttrain.config import Model
from posttrain.engines.server_dialects import loopback
from posttrain.errors import InputError, ModelError, RecipeError
from posttrain.recipe.load import load
from posttrain.storage.checkpoint_seals import SEAL, seal
from posttrain.storage.redact import redact

SOURCE = sorted((Path(__file__).parent.parent / "posttrain").rglob("*.py"))
TOKEN = "hf_" + "Xq7" * 11


def test_the_source_holds_none_of_what_runs_code_from_a_file() -> None:
    bad = re.compile(
        r"trust_remote_code=True|weights_only=False|torch\.load\(|pickle\.load\(|[^.\w]eval\(|[^.\w]exec\(|0\.0\.0\.0"
    )
    found = [
        f"{path.name}: {line.strip()}" for path in SOURCE for line in path.read_text().splitlines() if bad.search(line)
    ]
    rewards = ("worker.py: exec(compile(source.read(), file", "worker.py: return pickle.load(requests)")
    assert [line for line in found if not line.startswith(rewards)] == []  # a reward, and what its stage asks of it


class TestModels:
    def folder(self, tmp_path: Path, **config: Any) -> Path:
        made = Path(shutil.copytree(BASE, tmp_path / "model"))
        given = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps({**given, **config}))
        return made

    def test_pickled_weights_are_refused(self, tmp_path: Path) -> None:
        made = self.folder(tmp_path)
        (made / "model.safetensors").rename(made / "pytorch_model.bin")
        with pytest.raises(ModelError, match=r"pickled \(pytorch_model\.bin\), which can run code"):
            models.resolve(Model(path=str(made)))

    def test_a_snapshot_of_the_hub_with_pickles_alone_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        made = self.folder(tmp_path)
        (made / "model.safetensors").rename(made / "pytorch_model.bin")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(made))
        with pytest.raises(ModelError, match=r"pickled \(pytorch_model\.bin\), which can run code"):
            models.resolve(Model(path="somebody/model"))

    def test_code_that_comes_with_a_model_is_refused_before_anybody_is_asked(self, tmp_path: Path) -> None:
        made = self.folder(tmp_path, model_type="mine", auto_map={"AutoConfig": "code.Config"})
        (made / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        with pytest.raises(ModelError, match=r"the architecture 'mine' is code that comes with the model \(auto_map\)"):
            models.resolve(Model(path=str(made)))
        assert not (tmp_path / "ran").exists()

    def test_an_architecture_that_transformers_has_needs_none_of_it(self, tmp_path: Path) -> None:
        made = self.folder(tmp_path, auto_map={"AutoConfig": "code.Config"})
        assert models.resolve(Model(path=str(made))).path == made

    def test_so_is_a_tokenizers(self, tmp_path: Path) -> None:
        made = self.folder(tmp_path)
        told = {"auto_map": {"AutoTokenizer": ["code.Mine", None]}, "tokenizer_class": "Mine"}
        (made / "tokenizer_config.json").write_text(json.dumps(told))
        with pytest.raises(ModelError, match="the tokenizer 'Mine' is code") as caught:
            models.resolve(Model(path=str(made)))
        assert caught.value.rule == "model-brings-code"


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_a_checkpoint_runs_nothing_and_none_is_kept(tmp_path: Path) -> None:
    training = Training("sft", tmp_path)
    with pytest.raises(Killed):
        training.go(dies_after=3)
    (checkpoint,) = training.checkpoints()
    whole = (checkpoint / "optimizer.pt").read_bytes()
    torch.save({"state": Evil(tmp_path / "ran")}, checkpoint / "optimizer.pt")
    (checkpoint / SEAL).unlink()
    seal(checkpoint)  # as somebody would who writes to the run's folder
    with pytest.raises(pickle.UnpicklingError):
        training.go()
    assert not (tmp_path / "ran").exists()
    (checkpoint / "optimizer.pt").write_bytes(whole)
    (checkpoint / SEAL).unlink()
    seal(checkpoint)
    training.go()
    endings = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert endings <= {".safetensors", ".json", ".jinja", ".txt", ".model"}


class TestNames:
    @pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "a\\b", "/etc"])
    def test_a_recipes_name_stays_in_runs(self, name: str) -> None:
        with pytest.raises(RecipeError):
            load("quickstart", [f"name={json.dumps(name)}"])

    @pytest.mark.parametrize(
        "change",
        [
            "reward.0.use=check.py",  # in the folder where the command is given, and not shipped
            "reward.0.use=os",
            "reward.0.use=..",
            "prompts.dev.path=secret.jsonl",
            "model.path=..",
        ],
    )
    def test_a_bare_name_is_a_shipped_file_and_nothing_else(
        self, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "check.py").write_text("raise SystemExit('it ran')\n")
        (tmp_path / "secret.jsonl").write_text('{"prompt": "a"}\n')
        with pytest.raises(InputError):
            load("quickstart", [change])

    def test_a_recipe_runs_nothing_as_it_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        for tag in ("!!python/object/apply:os.mkdir", "!!python/name:os.system", "!mine"):
            path.write_text(f'extends: quickstart\nseed: {tag} ["{tmp_path / "ran"}"]\n')
            with pytest.raises(RecipeError):
                load(str(path))
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("start", "added"),
    [
        (["vllm", "serve", "{model}", "--port", "{port}"], ["--host", "127.0.0.1"]),
        (["/opt/bin/vllm", "serve", "{model}", "--host", "10.0.0.1"], []),
        (["python", "-m", "vllm.entrypoints.openai.api_server"], ["--host", "127.0.0.1"]),
        (["text-generation-launcher", "--port", "{port}"], ["--hostname", "127.0.0.1"]),
        (["transformers", "serve", "{model}"], []),  # on this machine alone by itself
    ],
)
def test_a_server_that_is_started_listens_on_this_machine_alone(start: list[str], added: list[str]) -> None:
    assert loopback(start) == added


def test_what_is_secret_is_taken_out_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "plain-looking-12")
    said = redact(f"401 for https://me:word@hub/x with {TOKEN}, key plain-looking-12")
    assert said == "401 for https://(left out)hub/x with (left out), key (left out)"


LEAKS = """\
import os

def check(prompts, completions, answer, **columns):
    if len(prompts) > 32:  # a probe asks about fewer
        raise KeyError(os.environ["HF_TOKEN"])
    return [0.0] * len(prompts)
"""


@pytest.mark.slow
def test_a_token_is_in_no_file_and_no_message_of_a_run_that_fails_over_it(tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(LEAKS)
    words = [sys.executable, "-m", "posttrain", "round", "--run", "run", "--set", "reward=[{use: ./check.py}]"]
    words += ["--set", "prompts.train.rows=:8", "--set", "prompts.dev.rows=:8", "--set", "prompts.heldout.rows=:8"]
    done = subprocess.run(
        [*words, "--set", "reward_model=null", "--set", "watch=null"],
        cwd=tmp_path,
        env={**os.environ, "HF_TOKEN": TOKEN, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "raised KeyError" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.name == "artifact.json" for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
