"""Sampling on a GPU, and whether trainings on it and on the CPU agree: a part of benchmarks/gpu.sh.

    python benchmarks/gpu.py [--size Qwen2.5-0.5B] [--prompts 64] [--k 16] [--new 256] [--folder runs/gpu]

Sampling: random weights of that shape, prompts of 64 tokens, temperature 1, no end token. Operations are 2 for each
parameter and token, of prompts and answers; the peak is measured as in mfu.py.

Agreement: a round of the quickstart in a small size on the CPU, in float32; then its trained stages again on the GPU,
from the same rows. Printed is the norm of the difference of the weights, relative to what the training changed. Where
there is no GPU both are on the CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from mfu import SIZES, peak, write_model
from safetensors.torch import load_file

from posttrain import shipped
from posttrain.engines.load import load
from posttrain.engines.protocol import Request, SamplingParams, completion_seed
from posttrain.engines.shared_prefix import SharedPrefixEngine

PROMPT = 64  # tokens
TRAINED = ("reward_model", "sft", "dpo")
SMALL = {  # of the quickstart
    "engine.dtype": "float32",
    "model.attention": "sdpa",
    **{f"{name}.bf16": "false" for name in TRAINED},
    **{f"{name}.max_steps": "8" for name in TRAINED},
    "prompts.train.rows": ":240",
    "prompts.dev.rows": ":24",
    "prompts.heldout.rows": ":24",
    "samples.prompts": "80",
    "preferences.prompts": "80",
    "pairs.prompts": "60",
    "promote": "always",
}


def sampling(size: str, prompts: int, k: int, new: int, folder: Path) -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parameters = write_model(SIZES[size], folder)
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    engine = SharedPrefixEngine(replace(load(folder, dtype, str(device)), eos_ids=frozenset([2**31 - 1])))
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(10, 600, (prompts, PROMPT), generator=generator).tolist()
    requests = [
        Request(tuple(text), tuple(completion_seed(0, str(at), one) for one in range(k)))
        for at, text in enumerate(texts)
    ]
    engine.generate(requests[:2], SamplingParams(1.0, 8))  # kernels are made
    began = time.perf_counter()
    made = engine.generate(requests, SamplingParams(1.0, new))
    spent = time.perf_counter() - began
    tokens = sum(len(one.tokens) for answers in made for one in answers)
    reached = 2 * parameters * (tokens + prompts * PROMPT) / spent
    most = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return "\n".join(
        [
            "| device | model | answers | tokens / s | TFLOP/s | of the peak | memory, MiB |",
            "| --- " * 7 + "|",
            f"| {name} | {size}, {dtype} | {prompts} x {k} x {new} | {tokens / spent:,.0f} | {reached / 1e12:.3g} | "
            f"{reached / peak(device):.1%} | {most:,.0f} |",
        ]
    )


def agreement(folder: Path) -> str:
    here, there = folder / "cpu", folder / "gpu"
    _round(here, {"CUDA_VISIBLE_DEVICES": ""})
    shutil.copytree(here, there)
    for path in _trained(there).values():
        shutil.rmtree(path)
    _round(there, {})
    lines = ["| trained on both | weights differ by | relative to what changed |", "| --- " * 3 + "|"]
    base = _weights(shipped.locate("data", "tiny-base"))
    for name, path in _trained(here).items():
        one, other = _weights(path), _weights(_trained(there)[name])
        differs = _norm({key: one[key] - other[key] for key in one})
        changed = _norm({key: one[key] - base[key] for key in one if key in base})
        lines.append(f"| {name} | {differs:.3g} | {differs / changed:.2g} |")
    return "\n".join(lines)


def _round(run: Path, env: Mapping[str, str]) -> None:
    words = [sys.executable, "-m", "posttrain", "round", "--n", "1", "--run", str(run)]
    words += [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


def _trained(run: Path) -> dict[str, Path]:
    return {name: path for name in TRAINED for path in (run / "artifacts").glob(f"{name}-*")}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value.float() for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def _norm(weights: Mapping[str, torch.Tensor]) -> float:
    return float(sum(one.pow(2).sum() for one in weights.values())) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="Qwen2.5-0.5B" if torch.cuda.is_available() else "1M")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"))
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    print(sampling(given.size, given.prompts, given.k, given.new, given.folder / "model"), "\n")
    print(agreement(given.folder))


if __name__ == "__main__":
    main()
