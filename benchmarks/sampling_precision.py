"""How far is the distribution of the next token in a faster type from that in float32? KL divergence, along real texts.

    python benchmarks/sampling_precision.py --model FOLDER --texts FILE [--rows N] [--longest N] [--dtypes TYPE…]

FOLDER is a causal model with a chat template. FILE is JSONL with an answer, and with a question, as GSM8K's, or a
prompt. The engine's own decoder reads each answer token by token behind its prompt. The KL is of the type's
distribution to float32's, in nats a token; `same first`: the share of places with the same likeliest token. One thread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from posttrain.data.chat_template import render_prompt
from posttrain.engines.decoder import fitting_decoder
from posttrain.engines.kv_cache import Pool, Suffixes
from posttrain.engines.load import load


@torch.inference_mode()
def distributions(folder: Path, dtype: str, rows: Sequence[dict[str, str]], longest: int) -> torch.Tensor:
    """Log-probs of the next token at every place of the answers, (places, vocab)."""
    loaded = load(folder, dtype, "cpu")
    decoder, found = fitting_decoder(loaded), list[torch.Tensor]()
    for row in rows:
        prompt = render_prompt(loaded.tokenizer, [{"role": "user", "content": row.get("question") or row["prompt"]}])
        answer = loaded.tokenizer.encode(row["answer"], add_special_tokens=False)[:longest]
        prefix, logits = decoder.prefill([prompt])
        suffixes = Suffixes(prefix, torch.tensor([0]), 1, decoder.kv_heads, len(answer) + 1, Pool(decoder.device))
        found.append(logits.float().log_softmax(-1))
        for at, token in enumerate(answer):
            logits = decoder.step(torch.tensor([token]), torch.tensor([len(prompt) + at]), [suffixes])
            found.append(logits.float().log_softmax(-1))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--longest", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in given.texts.read_text("utf-8").splitlines()[: given.rows]]
    exact = distributions(given.model, "float32", rows, given.longest)
    print("| type | places | KL to float32, mean | median | same first |\n| --- | ---: | ---: | ---: | ---: |")
    for dtype in given.dtypes:
        other = distributions(given.model, dtype, rows, given.longest)
        kl = (other.exp() * (other - exact)).sum(-1)
        same = (other.argmax(-1) == exact.argmax(-1)).float().mean()
        print(f"| {dtype} | {len(kl)} | {kl.mean():.4f} | {kl.median():.4f} | {same:.3f} |", flush=True)


if __name__ == "__main__":
    main()
