"""Trains the quickstart's base model from the messy corpus of word_problems.py. Its card is tiny-base/README.md.

    python data/tiny_base.py [FOLDER]     # default: tiny-base beside this file; about fifteen minutes on one core

Byte-level BPE with digits split one by one, a chat template, and a Llama of under a million parameters. Everything is
seeded: the same machine gives the same weights each time, another one the same figures within their intervals.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random
from statistics import mean

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from word_problems import corpus, prompts

HERE = Path(__file__).resolve().parent
SEED = 0
STEPS = 2000
BATCH = 64
ANSWER = 20  # tokens of a usual answer. Each token weighs the same: a mean per batch would favour short answers
LEARNING_RATE = 4e-3
VOCABULARY = 640
TEMPERATURES = (1.0, 0.7, 0.5, 0.3)
CONTROL = PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
PAD_ID, END_ID = CONTROL.index(PAD), CONTROL.index(END)  # the tokenizer numbers them first, in this order

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "<|assistant|>{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{%- else -%}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; a digit, with the space before it, is never merged with another."""
    bpe = Tokenizer(models.BPE())
    pieces = Regex(r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]|\s")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=END_ID,
    )
    # Eager attention: the flash-attention backward in bf16 is slow on a CPU.
    return LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.float32)


def batches(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (ids, labels), each [BATCH, length], right-padded, texts of like length together."""
    asked = tokenizer([f"{USER}{prompt}{END}{ASSISTANT}" for prompt, _ in pairs], add_special_tokens=False)["input_ids"]
    answered = tokenizer([f"{answer}{END}" for _, answer in pairs], add_special_tokens=False)["input_ids"]
    chats = list(zip(asked, answered, strict=True))
    made = []
    for start in range(0, len(chats), BATCH * 50):  # sorted only within a window, or lengths would come in order
        window = sorted(chats[start : start + BATCH * 50], key=lambda chat: len(chat[0]) + len(chat[1]))
        for at in range(0, len(window), BATCH):
            rows = window[at : at + BATCH]
            width = max(len(question) + len(answer) for question, answer in rows)
            ids, labels = torch.full((BATCH, width), PAD_ID), torch.full((BATCH, width), -100)
            for row, (question, answer) in enumerate(rows):
                end = len(question) + len(answer)
                ids[row, :end] = torch.tensor(question + answer)
                labels[row, len(question) : end] = torch.tensor(answer)
            made.append((ids, labels))
    Random(SEED).shuffle(made)
    return made


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    inside = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    rest = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inside, lr=LEARNING_RATE, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    model: LlamaForCausalLM,
    made: list[tuple[torch.Tensor, torch.Tensor]],
    answer: int = ANSWER,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Next-token training on the answers, linear warm-up and decay. `answer`: tokens of a usual one. Returns the number
    of tokens seen."""
    parts = optimizers(model)
    started, seen = time.monotonic(), 0
    model.train()
    for step, (ids, labels) in enumerate(made):
        rate = LEARNING_RATE * min((step + 1) / 100, 0.02 + 0.98 * (1 - step / len(made)))
        mask = ids.ne(PAD_ID)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(ids, attention_mask=mask.long(), labels=labels, num_items_in_batch=BATCH * answer).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in parts:
            part.param_groups[0]["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)
        seen += int(mask.sum())
        if step % 100 == 99:
            speed = seen / (time.monotonic() - started)
            print(f"step {step + 1}/{len(made)}  loss {loss.item():.3f}  {speed:,.0f} tokens/s", flush=True)
    return seen


def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: list[str],
    temperature: float = 0.0,
    k: int = 1,
    longest: int = 64,
) -> list[list[str]]:
    """`k` answers to each prompt of at most `longest` tokens; temperature 0 is greedy."""
    torch.manual_seed(SEED)
    model.eval()
    chats = [f"{USER}{prompt}{END}{ASSISTANT}" for prompt in asked]
    given: list[list[str]] = []
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    for start in range(0, len(chats), 100):
        rows = tokenizer(chats[start : start + 100], return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            out = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                input_ids=rows["input_ids"],
                attention_mask=rows["attention_mask"],
                max_new_tokens=longest,
                num_return_sequences=k,
                **how,
            )
        texts = tokenizer.batch_decode(out[:, rows["input_ids"].shape[1] :], skip_special_tokens=True)
        given += [texts[at : at + k] for at in range(0, len(texts), k)]
    return given


def reward(name: str, function: str) -> Callable[..., list[float | None]]:
    """A function of reward/NAME.py."""
    spec = importlib.util.spec_from_file_location(function, HERE.parent / "reward" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, tuple[float, int]]:
    """Figures on the held-out prompts: name to (value, number of prompts)."""
    heldout = prompts("heldout")
    problems = [row for row in heldout if row["answer"] is not None]
    requests = [row for row in heldout if row["answer"] is None]
    figures: dict[str, tuple[float, int]] = {}

    def score(rows: list[dict], judge: Callable, temperature: float, k: int) -> list[list[float]]:
        given = answers(model, tokenizer, [row["prompt"] for row in rows], temperature, k)
        return [
            judge(
                [[{"role": "user", "content": row["prompt"]}]] * k,
                [[{"role": "assistant", "content": text}] for text in texts],
                answer=[row["answer"]] * k,
            )
            for row, texts in zip(rows, given, strict=True)
        ]

    correct, well_written = reward("word-problems", "correct"), reward("notes", "well_written")
    n = len(problems)
    figures["greedy accuracy"] = (mean(scores[0] for scores in score(problems, correct, 0.0, 1)), n)
    for temperature in TEMPERATURES:
        sampled = score(problems, correct, temperature, 8)
        figures[f"pass@1, T = {temperature}"] = (mean(map(mean, sampled)), n)
        figures[f"pass@8, T = {temperature}"] = (mean(map(max, sampled)), n)
    n = len(requests)
    figures["well-written notes, greedy"] = (mean(s[0] for s in score(requests, well_written, 0.0, 1)), n)
    figures["well-written notes, T = 1.0"] = (mean(map(mean, score(requests, well_written, 1.0, 8))), n)
    for name, (value, count) in figures.items():
        print(f"{name}: {value:.3f} (n = {count})")
    return figures


CARD = """---
license: apache-2.0
language: en
---
# tiny-base

The base model of posttrain's quickstart: a Llama of {parameters:,} parameters that *often can but seldom does* the
right thing. Made for this project from nothing but `data/word_problems.py`; no other data, no other model.

- **Made by** `python data/tiny_base.py`: seed {seed}, {steps:,} steps of {batch} texts, {tokens:,} tokens.
- **Corpus**: generated chats, six word problems to four notes. About a third of the answers are good; the rest slip,
  guess, refuse, ramble, break off, name the wrong person or thing. Problems of five kinds are mostly misread, so that
  the model's first choice there is a wrong habit. No prompt, and no numbers of a story, of the dev and held-out sets
  is in it.
- **Tokenizer**: byte-level BPE, {vocabulary} tokens, digits one by one, chat template with generation markers.
- **For**: showing and testing the loop. It knows nothing else.
- **Licence**: Apache-2.0, as the repository.

Measured on the held-out prompts (sampled figures: 8 answers to each):

| figure | value | prompts |
| --- | --- | --- |
{figures}
"""


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, longest: int) -> None:
    """`longest`: tokens of an answer, where nothing else is said."""
    model.generation_config = GenerationConfig(eos_token_id=END_ID, pad_token_id=PAD_ID, max_new_tokens=longest)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # another number of threads adds in another order, and the weights would differ
    tokenizer = train_tokenizer([text for pair in islice(corpus(SEED + 1), 20_000) for text in pair])
    model = make_model(tokenizer)
    tokens = train(model, batches(tokenizer, list(islice(corpus(SEED), STEPS * BATCH))))
    save(model, tokenizer, folder, 64)
    figures = measure(model, tokenizer)
    table = "\n".join(f"| {name} | {value:.3f} | {count} |" for name, (value, count) in figures.items())
    card = CARD.format(
        parameters=model.num_parameters(),
        seed=SEED,
        steps=STEPS,
        batch=BATCH,
        tokens=tokens,
        vocabulary=len(tokenizer),
        figures=table,
    )
    (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "tiny-base")
