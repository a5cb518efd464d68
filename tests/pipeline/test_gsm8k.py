"""The GSM8K recipe end to end for one round, on a small untrained Llama with a tokenizer made from GSM8K's text."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.storage import store
from posttrain.storage.files import read_json

DATA = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="needs GSM8K's files beside the checkout")]

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=alphabet)
    rows = [json.loads(line) for line in (DATA / "train.jsonl").read_text("utf-8").splitlines()[:1000]]
    bpe.train_from_iterator([row["question"] + row["answer"] for row in rows], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    pad, end = 0, 1  # special tokens come first, in this order
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=pad,
        eos_token_id=end,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_one_round_runs_end_to_end(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [
        f"model.path={model}",
        f"prompts.train.path={DATA / 'train.jsonl'}",
        f"prompts.dev.path={DATA / 'train.jsonl'}",
        f"prompts.heldout.path={DATA / 'test.jsonl'}",
        "prompts.train.rows=:100",
        "prompts.dev.rows=-20:",
        "prompts.heldout.rows=:20",
        "preferences.prompts=100",
        "samples.prompts=60",
        "samples.k=4",
        "samples.max_new_tokens=24",
        "preferences.max_new_tokens=24",
        "pairs.prompts=60",
        "pairs.k=4",
        "pairs.max_new_tokens=24",
        "evaluate.k=2",
        "evaluate.max_new_tokens=24",
        "promote=always",
    ]
    command = [sys.executable, "-m", "posttrain", "round", "gsm8k", "--n", "1", "--run", str(run)]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {link.name: store.damaged_files(link.resolve()) for link in (run / "round-1").iterdir()}
    assert {
        "answers-samples",
        "preferences",
        "reward-model",
        "scores",
        "filtered",
        "sft",
        "pairs",
        "dpo",
        "evaluate",
    } <= made.keys()
    assert not any(made.values()), made
    heldout = read_json(run / "round-1" / "heldout" / "artifact.json")["metrics"]["heldout"]
    assert heldout["greedy"]["n"] == 20
    assert heldout["greedy"]["value"] <= 0.2  # untrained: the mechanics are whole, the score is not
